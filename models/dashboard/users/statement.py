"""The statement that migrates a batch of users: one snapshot, in named parts.

START HERE for the rules. It finds a bad user or subscription itself and quarantines it; the other
rows of the batch go through. Each part holds common table expressions that the parts after it read.
"""

# Each user as found, with the oldest suite and the sum of the credit log.
_LEGACY = """
own AS (
  SELECT DISTINCT ON (o.user_id) o.user_id, o.id FROM {ai_suites} o WHERE {suites_scope}
  ORDER BY o.user_id, o.created_at, o.id
),
log AS (
  SELECT c.user_id, array_agg(c.id) AS ids,
    sum(CASE WHEN c.operation = 'deduct' THEN -c.amount ELSE c.amount END) AS total
  FROM {credit_logs} c WHERE {logs_scope} GROUP BY c.user_id
),
legacy AS MATERIALIZED (
  SELECT u.id, u.id::text AS legacy_key, {email} AS email,
    {email_is_blank} AS is_bad,
    {role} AS role,
    u.user_type, u.billing_tier, u.organization_id, u.department_id, u.credits_balance, u.is_active,
    own.id AS own_suite_id, {grant_id} AS grant_id, {opening_id} AS opening_id,
    {suite_id} AS made_suite_id, coalesce(own.id, {suite_id}) AS suite_id,
    coalesce(log.total, 0) AS logged, log.ids AS log_ids
  FROM {users} u
  LEFT JOIN own ON own.user_id = u.id
  LEFT JOIN log ON log.user_id = u.id
  WHERE {scope}
)"""

# Rule 1: a null is unset, and so is a server default on a user who has no suite yet.
_OWNERS = """
owner AS MATERIALIZED (
  SELECT l.*,
    l.user_type IS NULL OR (
      l.own_suite_id IS NULL AND l.user_type IS NOT DISTINCT FROM {user_type_default})
      AS sets_user_type,
    l.billing_tier IS NULL OR (
      l.own_suite_id IS NULL AND l.billing_tier IS NOT DISTINCT FROM {billing_tier_default})
      AS sets_billing_tier,
    l.is_active IS NULL OR (
      l.own_suite_id IS NULL AND l.is_active IS NOT DISTINCT FROM {is_active_default})
      AS sets_is_active,
    l.organization_id IS NULL
      OR (l.own_suite_id IS NULL
          AND l.organization_id IS NOT DISTINCT FROM {organization_id_default})
      AS sets_organization,
    coalesce(l.credits_balance, 0) AS balance,
    {user_type} AS mapped_type,
    (l.grant_id = ANY(l.log_ids)) IS NOT TRUE AS needs_grant
  FROM legacy l CROSS JOIN LATERAL (SELECT l.role AS name) AS role WHERE NOT l.is_bad
),
typed AS MATERIALIZED (
  SELECT o.*,
    CASE WHEN o.sets_user_type THEN o.mapped_type ELSE o.user_type::text END AS final_type
  FROM owner o
)"""

# Rule 4.
_SUITES = """
suite AS (
  INSERT INTO {ai_suites} (id, user_id, name, configuration, is_active, created_at, updated_at)
  SELECT o.suite_id, o.id, o.email || {suite_suffix}, CAST({suite_configuration} AS {suite_json}),
    true, now(), now()
  FROM typed o WHERE o.own_suite_id IS NULL
  {unless_there_is_id}
  RETURNING 1
)"""

# Rule 5, with the reason of rule 9 for those that cannot be migrated.
_SUBSCRIPTIONS = """
read_subscription AS MATERIALIZED (
  SELECT s.id, s.id::text AS legacy_key, {tool_id} AS tool_id, {usage_id} AS usage_id,
    l.id AS user_id, l.suite_id, l.is_bad AS owner_is_bad, {gpt_id} AS gpt_id,
    {version} AS version, {is_active} AS is_active, {preferences} AS preferences
  FROM legacy l JOIN {subscriptions} s ON s.user_id = l.id
  WHERE {subscriptions_scope} AND {parts}
),
subscription AS MATERIALIZED (
  SELECT s.id, s.legacy_key, s.tool_id, s.usage_id, s.user_id, s.suite_id, s.gpt_id, s.version,
    s.is_active, {tool_configuration} AS configuration,
    CASE WHEN s.owner_is_bad THEN 'owner_quarantined'
         WHEN {its_gpt_id_is_blank} THEN 'gpt_id_blank'
         WHEN s.preferences IS NULL THEN 'preferences_malformed'
         WHEN jsonb_typeof(s.preferences) NOT IN ('object', 'null') THEN 'preferences_not_object'
    END AS reason
  FROM read_subscription s
)"""

# Rules 5 and 8. `moved` locks tools that come from another user, where there may be any.
_TOOLS = """
{moved}tool AS ({insert_tools} subscription s WHERE s.reason IS NULL {once_locked}
  {unless_there_is_id} RETURNING 1
),
assignment AS ({insert_assignments} subscription s WHERE s.reason IS NULL
  {unless_there_is_assignment} RETURNING 1
),
usage_log AS ({insert_usage_logs} subscription s WHERE s.reason IS NULL
  {unless_there_is_id} RETURNING 1
)"""

# Rule 7: what was there before the log began, then the grant on top; each once a user.
_CREDITS = """
opening AS (
  INSERT INTO {credit_logs}
    (id, user_id, operation, amount, balance_after, reason, run_id, created_at)
  SELECT o.opening_id, o.id, CASE WHEN o.balance < o.logged THEN 'deduct' ELSE 'add' END,
    abs(o.balance - o.logged), o.balance, 'migration_opening', :run_id, now()
  FROM typed o WHERE o.needs_grant AND o.balance <> o.logged
  {unless_there_is_id}
  RETURNING 1
),
granted AS (
  INSERT INTO {credit_logs}
    (id, user_id, operation, amount, balance_after, reason, run_id, created_at)
  SELECT o.grant_id, o.id, 'add', g.amount, o.balance + g.amount, 'migration_grant', :run_id, now()
  FROM typed o CROSS JOIN LATERAL (SELECT {grant_amount} AS amount) AS g
  WHERE o.needs_grant
  {unless_there_is_id}
  RETURNING user_id, amount
)"""

# What a rollback needs of each user whose columns change, or who gets a suite. Most had nothing of
# it: the first case says the same as the second, at a quarter of its cost.
_BEFORE_IMAGES = """
changed AS MATERIALIZED (
  SELECT o.*, g.amount
  FROM typed o LEFT JOIN granted g ON g.user_id = o.id
  WHERE o.sets_user_type OR o.sets_billing_tier OR o.sets_is_active OR o.sets_organization
     OR o.own_suite_id IS NULL OR g.user_id IS NOT NULL
),
image AS (
  INSERT INTO migration.before_images (run_id, entity, legacy_key, was)
  SELECT :run_id, 'user', c.legacy_key, CASE WHEN num_nonnulls(c.own_suite_id, c.user_type,
      c.billing_tier, c.is_active, c.organization_id, c.department_id, c.credits_balance) = 0
    THEN jsonb_build_object('type', c.final_type)
    ELSE jsonb_strip_nulls(jsonb_build_object('user_type', c.user_type,
    'billing_tier', c.billing_tier, 'is_active', c.is_active,
    'organization_id', c.organization_id, 'department_id', c.department_id,
    'credits_balance', c.credits_balance, 'suite', nullif(c.own_suite_id, c.made_suite_id),
    'had_suite', CASE WHEN c.own_suite_id = c.made_suite_id THEN true END,
    'type', CASE WHEN c.sets_user_type THEN c.final_type END,
    'kept', nullif(to_jsonb(array_remove(ARRAY[
      CASE WHEN NOT c.sets_user_type THEN 'user_type' END,
      CASE WHEN NOT c.sets_billing_tier THEN 'billing_tier' END,
      CASE WHEN NOT c.sets_is_active THEN 'is_active' END,
      CASE WHEN NOT c.sets_organization THEN 'organization_id' END], NULL)), '[]'))) END
  FROM changed c
  {unless_there_is_image}
)"""

# Rules 2 and 3. `u` is the row as it is locked: whatever the application wrote since the
# snapshot stands.
_USERS = """
home AS ({home}),
updated AS (
  UPDATE {users} u SET
    user_type = CASE WHEN c.sets_user_type AND u.user_type IS NOT DISTINCT FROM c.user_type
      THEN CAST(c.final_type AS {user_type_type}) ELSE u.user_type END,
    billing_tier = CASE
      WHEN c.sets_billing_tier AND u.billing_tier IS NOT DISTINCT FROM c.billing_tier
      THEN CAST('free' AS {billing_tier_type}) ELSE u.billing_tier END,
    is_active = CASE WHEN c.sets_is_active AND u.is_active IS NOT DISTINCT FROM c.is_active
      THEN true ELSE u.is_active END,
    organization_id = CASE
      WHEN c.sets_organization AND u.organization_id IS NOT DISTINCT FROM c.organization_id
      THEN h.organization_id ELSE u.organization_id END,
    department_id = CASE
      WHEN c.sets_organization AND u.organization_id IS NOT DISTINCT FROM c.organization_id
      THEN coalesce(u.department_id, h.department_id) ELSE u.department_id END,
    credits_balance = CASE WHEN c.amount IS NOT NULL
      THEN coalesce(u.credits_balance, 0) + c.amount ELSE u.credits_balance END
  FROM changed c LEFT JOIN home h ON true
  WHERE u.id = c.id AND {scope}
  RETURNING 1
)"""

# Rule 9; what is fixed leaves the quarantine.
_QUARANTINE = """
bad AS (
  SELECT 'user' AS entity, l.legacy_key, 'email_blank' AS reason,
    'The email is null or blank.' AS message, {user_hash} AS row_hash
  FROM legacy l WHERE l.is_bad
  UNION ALL
  SELECT 'subscription', s.legacy_key, s.reason, CASE s.reason
    WHEN 'owner_quarantined' THEN 'The owner is quarantined.'
    WHEN 'gpt_id_blank' THEN 'The gpt_id is null or blank.'
    WHEN 'preferences_malformed' THEN 'The preferences are not JSON that jsonb takes.'
    ELSE 'The preferences are JSON, but not an object.' END, {subscription_hash}
  FROM subscription s WHERE s.reason IS NOT NULL
),
new_quarantine AS (
  INSERT INTO migration.quarantine AS q
    (entity, legacy_key, run_id, batch_id, reason, message, row_hash)
  SELECT b.entity, b.legacy_key, :run_id, :batch_id, b.reason, b.message, b.row_hash FROM bad b
  {quarantine_again}
  RETURNING entity
),
resolved AS (
  UPDATE migration.quarantine q SET state = 'resolved', changed_at = clock_timestamp()
  WHERE q.state IN ('open', 'accepted') AND (
    (q.entity = 'user' AND q.legacy_key IN (SELECT o.legacy_key FROM typed o))
    OR (q.entity = 'subscription' AND q.legacy_key IN
        (SELECT s.legacy_key FROM subscription s WHERE s.reason IS NULL)))
  RETURNING 1
)"""

_COUNTS = """
SELECT
  (SELECT count(*) FROM legacy) AS users,
  (SELECT count(*) FROM legacy WHERE is_bad) AS users_quarantined,
  (SELECT count(*) FROM subscription) AS subscriptions,
  (SELECT count(*) FROM subscription WHERE reason IS NOT NULL) AS subscriptions_quarantined,
  (SELECT count(*) FROM suite) AS ai_suites,
  (SELECT count(*) FROM tool) AS ai_tools,
  (SELECT count(*) FROM assignment) AS tool_assignments,
  (SELECT count(*) FROM usage_log) AS tool_usage_logs,
  (SELECT coalesce(sum(amount), 0) FROM granted) AS credits_granted
"""

MIGRATE = (
    "WITH "
    + ",".join(
        (
            _LEGACY,
            _OWNERS,
            _SUITES,
            _SUBSCRIPTIONS,
            _TOOLS,
            _CREDITS,
            _BEFORE_IMAGES,
            _USERS,
            _QUARANTINE,
        )
    )
    + _COUNTS
)
