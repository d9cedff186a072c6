"""Rules 1 and 3 to 9 for users and their subscriptions: one statement a batch, one snapshot.

START HERE for the rules. The statement itself finds a bad user or subscription and quarantines it;
the other rows of the batch go through. `users/verify.py` states the rules a second time.
"""

from __future__ import annotations

import functools
from decimal import Decimal

from models.dashboard import ids
from models.dashboard.legacy import exact, optional, word
from models.dashboard.projects import verify as projects_verification
from models.dashboard.schema import ENUMS
from models.dashboard.scopes import near, owned
from models.dashboard.sources import USERS
from models.dashboard.tools import is_still_ours
from models.dashboard.users import changes, checksum
from models.dashboard.users import verify as users_verification
from models.engine.source import SourceTable
from models.engine.step import Context, Counts, Scope, Step, add, counts, default_of
from models.postgres.catalog import TEXT_TYPES

# A user whose balance somebody may be moving is locked before the statement takes its snapshot,
# so that the balance and the log that it reads belong together. Waits in key order.
_LOCK_BALANCES = """
SELECT count(*) FROM (
  SELECT FROM {users} u WHERE {scope} AND u.credits_balance <> 0
  ORDER BY u.id FOR NO KEY UPDATE) AS locked
"""

_MIGRATE = """
WITH own AS (
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
    btrim(coalesce({email}, ''), :blanks) = '' AS is_bad,
    {role} AS role,
    u.user_type, u.billing_tier, u.organization_id, u.department_id, u.credits_balance, u.is_active,
    own.id AS own_suite_id, {grant_id} AS grant_id, {opening_id} AS opening_id,
    {suite_id} AS made_suite_id, coalesce(own.id, {suite_id}) AS suite_id,
    coalesce(log.total, 0) AS logged, log.ids AS log_ids
  FROM {users} u
  LEFT JOIN own ON own.user_id = u.id
  LEFT JOIN log ON log.user_id = u.id
  WHERE {scope}
),
-- Rule 1: a null is unset, and so is a server default on a user who has no suite yet.
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
    CASE WHEN l.role IN ({user_types}) THEN l.role ELSE 'student' END AS mapped_type,
    (l.grant_id = ANY(l.log_ids)) IS NOT TRUE AS needs_grant
  FROM legacy l WHERE NOT l.is_bad
),
typed AS MATERIALIZED (
  SELECT o.*,
    CASE WHEN o.sets_user_type THEN o.mapped_type ELSE o.user_type::text END AS final_type
  FROM owner o
),
home AS (
  SELECT o.id AS organization_id, d.id AS department_id
  FROM {organizations} o LEFT JOIN {departments} d
    ON d.organization_id = o.id AND d.name = 'General'
  WHERE o.name = 'Default Organization' ORDER BY o.created_at, o.id, d.created_at, d.id LIMIT 1
),
suite AS (
  INSERT INTO {ai_suites} (id, user_id, name, configuration, is_active, created_at, updated_at)
  SELECT o.suite_id, o.id, o.email || '''s Suite',
    CAST('{{"default_tools"\\: [], "preferences"\\: {{}}, "auto_configuration"\\: true}}'
         AS {suite_json}), true, now(), now()
  FROM typed o WHERE o.own_suite_id IS NULL
  {unless_there_is_id}
  RETURNING 1
),
read_subscription AS MATERIALIZED (
  SELECT s.id, s.id::text AS legacy_key, {tool_id} AS tool_id, {usage_id} AS usage_id,
    l.id AS user_id, l.suite_id, l.is_bad AS owner_is_bad, {gpt_id} AS gpt_id,
    {version} AS version, {is_active} AS is_active, {preferences} AS preferences
  FROM legacy l JOIN {subscriptions} s ON s.user_id = l.id
  WHERE {subscriptions_scope} AND {parts}
),
subscription AS MATERIALIZED (
  SELECT s.*,
    CASE WHEN s.owner_is_bad THEN 'owner_quarantined'
         WHEN btrim(coalesce(s.gpt_id, ''), :blanks) = '' THEN 'gpt_id_blank'
         WHEN s.preferences IS NULL THEN 'preferences_malformed'
         WHEN jsonb_typeof(s.preferences) NOT IN ('object', 'null') THEN 'preferences_not_object'
    END AS reason
  FROM read_subscription s
),
{moved}tool AS (
  INSERT INTO {ai_tools} (id, name, tool_type, version, configuration, pricing_tier, credits_cost,
    is_active, requires_approval, created_at, updated_at, suite_id)
  SELECT s.tool_id, s.gpt_id, 'gpt', s.version,
    CASE WHEN jsonb_typeof(s.preferences) = 'null' THEN '{{}}' ELSE s.preferences
    END::{tool_json}, CAST('free' AS {tool_tier}), 0, s.is_active, false, now(), now(), s.suite_id
  FROM subscription s WHERE s.reason IS NULL {once_locked}
  {unless_there_is_id}
  RETURNING 1
),
assignment AS (
  INSERT INTO {tool_assignments} (tool_id, user_id, assigned_by, assigned_at, permissions)
  SELECT s.tool_id, s.user_id, {assigned_by}, now(), '{{"full_access"\\: true}}'
  FROM subscription s WHERE s.reason IS NULL
  {unless_there_is_assignment}
  RETURNING 1
),
usage_log AS (
  INSERT INTO {tool_usage_logs} (id, user_id, tool_id, session_id, action, parameters,
    credits_used, status, started_at, completed_at, duration)
  SELECT s.usage_id, s.user_id, s.tool_id, :run_id, 'migration', '{{}}', 0, 'completed',
    now(), now(), 0
  FROM subscription s WHERE s.reason IS NULL
  {unless_there_is_id}
  RETURNING 1
),
-- Rule 7: what was there before the log began, then the grant on top; each once a user.
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
),
changed AS MATERIALIZED (
  SELECT o.*, g.amount
  FROM typed o LEFT JOIN granted g ON g.user_id = o.id
  WHERE o.sets_user_type OR o.sets_billing_tier OR o.sets_is_active OR o.sets_organization
     OR o.own_suite_id IS NULL OR g.user_id IS NOT NULL
),
image AS (
  INSERT INTO migration.before_images (run_id, entity, legacy_key, was)
  SELECT :run_id, 'user', c.legacy_key, jsonb_strip_nulls(jsonb_build_object(
    'user_type', c.user_type, 'billing_tier', c.billing_tier, 'is_active', c.is_active,
    'organization_id', c.organization_id, 'department_id', c.department_id,
    'credits_balance', c.credits_balance, 'suite', nullif(c.own_suite_id, c.made_suite_id),
    'had_suite', CASE WHEN c.own_suite_id = c.made_suite_id THEN true END,
    'type', CASE WHEN c.sets_user_type THEN c.final_type END,
    'kept', nullif(to_jsonb(array_remove(ARRAY[
      CASE WHEN NOT c.sets_user_type THEN 'user_type' END,
      CASE WHEN NOT c.sets_billing_tier THEN 'billing_tier' END,
      CASE WHEN NOT c.sets_is_active THEN 'is_active' END,
      CASE WHEN NOT c.sets_organization THEN 'organization_id' END], NULL)), '[]')))
  FROM changed c
  {unless_there_is_image}
),
-- `u` is the row as it is locked: whatever the application wrote since the snapshot stands.
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
),
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
)
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


class Users(Step):
    """Migrates users with their suite, subscriptions, usage logs and credits."""

    name = "users"
    stage = "users"
    queue = "migration.users"
    source = USERS
    entity = "user"
    weight = 24
    part_entity = "subscription"
    part_table = "ai_tools"
    is_verified = True
    undone_by = "undo_users"
    resolves = True

    def prepare(self, context: Context, scope: Scope) -> Counts:
        user_key = context.sources.users.columns["id"].base
        context.execute(_LOCK_BALANCES, scope, scope=scope.condition("u.id", user_key))
        return {}

    def apply(self, context: Context, scope: Scope) -> Counts:
        names = _expressions(context, scope)
        found = list(changes.before(context, scope, names)) if context.may_be_there(scope) else []
        found.append(counts(context.execute(_MIGRATE, scope, **names).one()))
        if context.may_be_there(scope):
            found += changes.after(context, scope, names)
        return functools.reduce(add, found)

    def withdraw(self, context: Context, scope: Scope) -> Counts:
        if not context.may_be_there(scope):
            return {}
        names = _expressions(context, scope)
        return functools.reduce(add, changes.withdraw(context, scope, names))

    def differences(self, context: Context, scope: Scope) -> list[str]:
        return users_verification.differences(context, scope)

    def details(self, context: Context, scope: Scope) -> list[str]:
        owner_key = context.sources.users.columns["id"].base
        theirs = scope.condition("p.user_id", owner_key)
        return [
            *users_verification.details(context, scope),
            *projects_verification.details(context, theirs),
        ]

    def account(self, context: Context, scope: Scope) -> str:
        return checksum.statement(context, scope)


def _expressions(context: Context, scope: Scope) -> dict[str, str]:
    users, subscriptions = context.sources.users, context.sources.subscriptions
    user_key = users.columns["id"].base
    subscription_key = subscriptions.columns["id"].base
    defaulted = ("user_type", "billing_tier", "is_active", "organization_id")
    return {
        "scope": scope.condition("u.id", user_key),
        "suites_scope": owned(context, context.target.table("ai_suites"), "o", scope),
        "logs_scope": owned(context, context.target.table("credit_logs"), "c", scope),
        "subscriptions_scope": near(context, subscriptions, "s", scope),
        "parts": scope.parts_condition("s.id", subscription_key),
        "role": word(exact(users, "role", "NULL", alias="u")),
        "unless_there_is_id": scope.unless_there("id"),
        "unless_there_is_assignment": scope.unless_there("tool_id, user_id"),
        "unless_there_is_image": scope.unless_there("entity, legacy_key, run_id"),
        **changes.locks(context, may_be_there=context.may_be_there(scope)),
        "own_image": changes.OWN_IMAGE,
        "still_ours": is_still_ours(context),
        "suite_id": ids.id_of(context.sources, ids.SUITE, "u.id", user_key),
        "grant_id": ids.id_of(context.sources, ids.GRANT, "u.id", user_key),
        "opening_id": ids.id_of(context.sources, ids.OPENING, "u.id", user_key),
        "tool_id": ids.id_of(context.sources, ids.SUBSCRIPTION_TOOL, "s.id", subscription_key),
        "usage_id": ids.id_of(context.sources, ids.SUBSCRIPTION_USAGE, "s.id", subscription_key),
        "version": exact(subscriptions, "version", "NULL"),
        "is_active": is_active(subscriptions),
        "preferences": preferences(subscriptions, is_optimistic=scope.is_optimistic),
        "user_hash": context.sources.hash_by_key("user", "l.id"),
        "subscription_hash": context.sources.hash_by_key("subscription", "s.id"),
        "user_types": ", ".join(f"'{name}'" for name in ENUMS["user_type"]),
        "grant_amount": grant_amount(context, "o.final_type"),
        "role_amount": grant_amount(context, "role.type"),
        "assigned_by": assigned_by(context),
        "suite_json": context.type_of("ai_suites", "configuration"),
        "tool_json": context.type_of("ai_tools", "configuration"),
        "tool_tier": context.type_of("ai_tools", "pricing_tier"),
        "user_type_type": users.columns["user_type"].type,
        "billing_tier_type": users.columns["billing_tier"].type,
        **{f"{column}_default": default_of(users, column) for column in defaulted},
    }


def preferences(subscriptions: SourceTable, *, is_optimistic: bool = False) -> str:
    """SQL for the preferences as jsonb: a JSON null for SQL's null, null for what jsonb refuses.

    Optimistic, the statement fails for what a json column holds and jsonb refuses, which is rare.
    """
    column = subscriptions.columns.get("preferences")
    if column is None:
        return "'{}'::jsonb"
    name = subscriptions.value("preferences", "s")
    if column.base == "jsonb" or (column.base == "json" and is_optimistic):
        return f"coalesce({name}::jsonb, 'null'::jsonb)"
    return f"CASE WHEN {name} IS NULL THEN 'null'::jsonb ELSE migration.try_jsonb({name}::text) END"


def assigned_by(context: Context) -> str:
    """SQL for who assigned a tool: `system`, or null where the column points at a user."""
    table = context.target.table("tool_assignments")
    is_text = table.columns["assigned_by"].base in TEXT_TYPES
    return "'system'" if is_text and not table.key_on("assigned_by") else "NULL"


def grants(context: Context) -> dict[str, Decimal]:
    """Credits by type of user, as the run keeps them; `*` is any other type."""
    return {name: Decimal(amount) for name, amount in context.constants.items()}


def grant_amount(context: Context, user_type: str) -> str:
    """SQL for the credits that a user of this type is granted; amounts are validated decimals."""
    cases = " ".join(
        f"WHEN '{name}' THEN {amount}" for name, amount in grants(context).items() if name != "*"
    )
    other = f"{grants(context)['*']}::numeric"
    return f"CASE {user_type} {cases} ELSE {other} END" if cases else other


def is_active(subscriptions: SourceTable) -> str:
    """SQL for whether the tool of a subscription is active."""
    status = word(exact(subscriptions, "status", "'active'"))
    active = optional(subscriptions, "is_active", "NULL", alias="s")
    return f"coalesce({status} = 'active', false) AND {active}::boolean IS NOT FALSE"
