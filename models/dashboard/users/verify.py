"""The second opinion on users and subscriptions: what must be there, compared with what is.

Shares no statement with `users.py`. Every legacy row that is not quarantined is held against each
target row it must have produced, and every row that the migration made against the legacy rows.
"""

from __future__ import annotations

from models.dashboard import ids
from models.dashboard.checks import expected
from models.dashboard.checks.expected import tool_checks
from models.engine.checks.verification import Check, with_checks, wrong_values
from models.engine.step import Context, Scope
from models.postgres.keys import key_from_text


def _user_value(column: str, wanted: str) -> Check:
    """A column of a user: its value where this run wrote it; elsewhere it must not be null."""
    found = f"u.{column}"
    return Check(
        "wrong_value",
        "users",
        column,
        f"{found} IS NULL OR (u.is_known AND {found} <> {wanted})",
        f"CASE WHEN u.is_known THEN ({wanted})::text ELSE 'not null' END",
        found,
    )


_DUPLICATE_SUITE = (
    " FROM {ai_suites} e WHERE e.user_id = u.id AND e.id <> s.id"
    " AND e.name = s.name AND e.configuration::jsonb = s.configuration::jsonb"
)
_DEPARTMENT = (
    "CASE WHEN u.was ? 'department_id' THEN u.was ->> 'department_id'"
    " WHEN NOT u.kept ? 'organization_id' THEN home.department_id END"
)
_USER_CHECKS = (
    _user_value(
        "user_type",
        "CASE WHEN u.kept ? 'user_type' THEN u.was ->> 'user_type' ELSE u.type END",
    ),
    _user_value(
        "billing_tier",
        "CASE WHEN u.kept ? 'billing_tier' THEN u.was ->> 'billing_tier' ELSE 'free' END",
    ),
    _user_value(
        "is_active",
        "CASE WHEN u.kept ? 'is_active' THEN (u.was ->> 'is_active')::boolean ELSE true END",
    ),
    _user_value(
        "organization_id",
        "CASE WHEN u.kept ? 'organization_id' THEN u.was ->> 'organization_id'"
        " ELSE home.organization_id END",
    ),
    *wrong_values("users", "u.is_known", {"department_id": ("u.department_id", _DEPARTMENT)}),
    Check("wrong_value", "users", "credits_balance", "u.credits_balance IS NULL", "'not null'"),
    Check(
        "missing",
        "ai_suites",
        "",
        "s.id IS NULL AND ((u.is_known AND NOT u.was ? 'suite')"
        " OR NOT EXISTS (SELECT FROM {ai_suites} e WHERE e.user_id = u.id))",
    ),
    Check("extra", "ai_suites", "", "s.id IS NOT NULL AND u.was ? 'suite'"),
    Check(
        "extra",
        "ai_suites",
        "duplicate",
        f"EXISTS (SELECT{_DUPLICATE_SUITE})",
        key=f"SELECT min(e.id::text){_DUPLICATE_SUITE}",
    ),
    Check("wrong_owner", "ai_suites", "", "s.user_id <> u.id", "u.id", "s.user_id"),
    *wrong_values(
        "ai_suites",
        "s.id IS NOT NULL AND (u.is_known OR s.is_as_made)",
        {
            "name": (
                "s.name",
                "CASE WHEN s.name IS NOT NULL THEN concat(u.email, {suite_suffix}) END",
            ),
            "configuration": ("s.configuration::jsonb", "{suite_configuration}"),
            "is_active": ("s.is_active", "true"),
        },
    ),
)

# What the columns were before comes from the newest before-image. Where an earlier run wrote it,
# the new application may have changed the columns since: only nulls can be told then.
_USERS = """
SELECT found.kind, 'user', u.legacy_key, found.target_table, found.detail, {values}
FROM (
  SELECT u.id, u.id::text AS legacy_key, {email} AS email,
    u.user_type::text, u.billing_tier::text,
    u.is_active, u.organization_id::text, u.department_id::text, u.credits_balance,
    b.was, coalesce(b.was -> 'kept', '[]') AS kept,
    coalesce(b.run_id = :own_run, false) AS is_known,
    {user_type} AS type
  FROM {users} u CROSS JOIN LATERAL (SELECT {role} AS name) AS role
  LEFT JOIN LATERAL (
    SELECT i.was, i.run_id FROM migration.before_images i
    WHERE i.entity = 'user' AND i.legacy_key = u.id::text ORDER BY i.run_id DESC LIMIT 1
  ) AS b ON true
  WHERE {scope} AND NOT EXISTS (
    SELECT FROM migration.quarantine q WHERE q.entity = 'user' AND q.legacy_key = u.id::text
      AND q.state IN ('open', 'accepted'))
) AS u
CROSS JOIN ({home}) AS home
LEFT JOIN LATERAL (
  SELECT e.*, e.updated_at IS NOT DISTINCT FROM e.created_at AS is_as_made FROM {ai_suites} e
  WHERE e.id = {suite_id} OFFSET 0
) AS s ON true
CROSS JOIN LATERAL (VALUES
  {checks}
) AS {fault}
WHERE ({differs}) AND found.differs
"""

# What an earlier run migrated and is bad now stays as it was until it is fixed.
_SET_ASIDE_USERS = """
SELECT 'extra', 'user', u.id::text, 'credit_logs', 'quarantined', c.id::text, NULL, NULL
FROM migration.quarantine q
JOIN {users} u ON u.id::text = q.legacy_key
JOIN {credit_logs} c ON c.id = {grant_id} AND c.run_id = :own_run
WHERE q.entity = 'user' AND q.state IN ('open', 'accepted') AND {scope}
UNION ALL SELECT 'extra', 'user', u.id::text, 'ai_suites', 'quarantined', s.id::text, NULL, NULL
FROM migration.quarantine q
JOIN {users} u ON u.id::text = q.legacy_key
JOIN {ai_suites} s ON s.id = {suite_id}
WHERE q.entity = 'user' AND q.state IN ('open', 'accepted') AND {scope}
  AND s.created_at >= (SELECT r.started_at AT TIME ZONE 'UTC' FROM migration.runs r
                       WHERE r.id = :own_run)
"""

_SUBSCRIPTION_CHECKS = (
    Check("missing", "ai_tools", "", "t.id IS NULL"),
    Check("missing", "tool_assignments", "", "a.tool_id IS NULL"),
    Check("missing", "tool_usage_logs", "", "l.id IS NULL"),
    *tool_checks(
        {
            "name": ("t.name", "e.gpt_id"),
            "version": ("t.version", "e.version"),
            "is_active": ("t.is_active", "e.is_active"),
            "configuration": ("t.configuration::jsonb", "e.configuration"),
        },
    ),
)

_SUBSCRIPTIONS = """
SELECT found.kind, 'subscription', e.legacy_key, found.target_table, found.detail, {values}
FROM (
  SELECT s.id::text AS legacy_key, s.user_id, {gpt_id} AS gpt_id, {version} AS version,
    {is_active} AS is_active, {configuration} AS configuration, {tool_id} AS tool_id,
    {usage_id} AS usage_id
  FROM {users} u JOIN {subscriptions} s ON s.user_id = u.id
  WHERE {scope} AND NOT EXISTS (
    SELECT FROM migration.quarantine q WHERE q.entity = 'subscription'
      AND q.legacy_key = s.id::text AND q.state IN ('open', 'accepted'))
) AS e
LEFT JOIN {ai_tools} t ON t.id = e.tool_id
LEFT JOIN {ai_suites} home ON home.id = t.suite_id
LEFT JOIN {tool_assignments} a ON a.tool_id = e.tool_id AND a.user_id = e.user_id
LEFT JOIN {tool_usage_logs} l ON l.id = e.usage_id
CROSS JOIN LATERAL (VALUES
  {checks}
) AS {fault}
WHERE ({differs}) AND found.differs
"""

# Rows that the migration made (their ids say so) and that no standing legacy row asks for, and
# duplicates: rows made during the run that repeat a migrated one under another id. What an
# earlier run made may stay while its legacy row is quarantined, or where the new application uses
# it.
_JUDGED = """
WITH page AS MATERIALIZED (SELECT u.id FROM {users} u WHERE {scope}),
legacy AS MATERIALIZED (
  SELECT {tool_id} AS tool_id, {usage_id} AS usage_id, s.user_id, q.legacy_key IS NULL AS stands
  FROM page JOIN {subscriptions} s ON s.user_id = page.id
  LEFT JOIN migration.quarantine q ON q.entity = 'subscription' AND q.legacy_key = s.id::text
    AND q.state IN ('open', 'accepted')
),
tools AS MATERIALIZED (
  SELECT t.id, s.user_id, t.suite_id, t.name, t.version, t.tool_type, t.configuration::jsonb,
    t.created_at, t.updated_at
  FROM page JOIN {ai_suites} s ON s.user_id = page.id JOIN {ai_tools} t ON t.suite_id = s.id
),
stray AS MATERIALIZED (
  SELECT t.id, 'subscription' AS entity, e.tool_id IS NULL AS is_gone FROM tools t
  LEFT JOIN legacy e ON e.tool_id = t.id AND e.user_id = t.user_id
  WHERE {is_tool} AND e.stands IS NOT TRUE
  UNION ALL
  SELECT t.id, 'project', true FROM tools t
  WHERE {is_project_tool} AND NOT EXISTS (SELECT FROM {projects} p WHERE p.id = {project_key})
),
judged AS MATERIALIZED (
  SELECT x.id, x.entity, EXISTS (
      SELECT FROM {tool_usage_logs} l
      WHERE l.tool_id = x.id AND l.action = 'migration' AND l.session_id = :own_run)
    OR coalesce(t.created_at >= (SELECT r.started_at AT TIME ZONE 'UTC' FROM migration.runs r
                                 WHERE r.id = :own_run), false)
    OR (x.is_gone AND {is_made} AND t.updated_at IS NOT DISTINCT FROM t.created_at
      AND (SELECT count(*) FROM {tool_usage_logs} l
           WHERE l.tool_id = x.id AND l.action IS DISTINCT FROM 'migration') = 0
      AND (SELECT count(*) FROM {tool_assignments} a
           WHERE a.tool_id = x.id AND a.assigned_by IS DISTINCT FROM {assigned_by}) = 0
      AND (SELECT count(*) FROM {marketplace_listings} m WHERE m.tool_id = x.id) = 0) AS is_extra
  FROM stray x JOIN tools t ON t.id = x.id
)
"""
_EXTRA = (
    _JUDGED
    + """
SELECT 'extra', j.entity, j.id::text, 'ai_tools', NULL, j.id::text, NULL, NULL
FROM judged j WHERE j.is_extra
UNION ALL
SELECT 'extra', 'subscription', t.id::text, 'ai_tools', 'duplicate', t.id::text, NULL, NULL
FROM tools t
WHERE NOT ({is_tool} OR {is_project_tool}) AND t.tool_type = 'gpt'
  AND t.created_at >= (SELECT r.started_at AT TIME ZONE 'UTC' FROM migration.runs r
                       WHERE r.id = :own_run)
  -- IS TRUE keeps these hash tables: as joins, they may loop over all pairs of a page.
  AND (jsonb_build_array(t.suite_id, t.name, t.configuration, t.version) IN (
    SELECT jsonb_build_array(o.suite_id, o.name, o.configuration, o.version)
    FROM tools o WHERE o.tool_type = 'gpt'
      AND (o.id IN (SELECT e.tool_id FROM legacy e WHERE e.stands)) IS TRUE
  )) IS TRUE
UNION ALL
SELECT 'extra', 'subscription', a.tool_id::text, 'tool_assignments', NULL,
  concat('tool ', a.tool_id, ', user ', a.user_id), NULL, NULL
FROM page JOIN {tool_assignments} a ON a.user_id = page.id
LEFT JOIN legacy e ON e.tool_id = a.tool_id AND e.user_id = a.user_id AND e.stands
LEFT JOIN judged j ON j.id = a.tool_id
WHERE {is_assigned_tool} AND e.tool_id IS NULL AND j.is_extra IS NOT FALSE
  AND a.assigned_by IS NOT DISTINCT FROM {assigned_by}
UNION ALL
SELECT 'extra', 'subscription', l.id::text, 'tool_usage_logs', NULL, l.id::text, NULL, NULL
FROM page JOIN {tool_usage_logs} l ON l.user_id = page.id
LEFT JOIN legacy e ON e.usage_id = l.id AND e.user_id = l.user_id AND e.stands
LEFT JOIN judged j ON j.id = l.tool_id
WHERE e.usage_id IS NULL AND l.action = 'migration' AND ({is_usage} OR {is_used_tool})
  AND j.is_extra IS NOT FALSE
"""
)


def differences(context: Context, scope: Scope) -> list[str]:
    """The statements over what is quarantined in one page of users."""
    return [context.render(_SET_ASIDE_USERS, **_expressions(context, scope))]


def details(context: Context, scope: Scope) -> list[str]:
    """The statements over one page of users, and over all that hangs on them."""
    names = _expressions(context, scope)
    statements = (
        with_checks(_USERS, _USER_CHECKS, {"users": "u.id", "ai_suites": "{suite_id}"}),
        with_checks(_SUBSCRIPTIONS, _SUBSCRIPTION_CHECKS, expected.TOOL_KEYS),
        _EXTRA,
    )
    return [context.render(sql, **names) for sql in statements]


def _expressions(context: Context, scope: Scope) -> dict[str, str]:
    users, subscriptions = context.sources.users, context.sources.subscriptions
    user_key = users.columns["id"].base
    key = subscriptions.columns["id"].base
    return {
        **expected.expressions(context),
        "scope": scope.condition("u.id", user_key),
        "suite_id": ids.id_of(context.sources, ids.SUITE, "u.id", user_key),
        "grant_id": ids.id_of(context.sources, ids.GRANT, "u.id", user_key),
        "tool_id": ids.id_of(context.sources, ids.SUBSCRIPTION_TOOL, "s.id", key),
        "usage_id": ids.id_of(context.sources, ids.SUBSCRIPTION_USAGE, "s.id", key),
        "is_made": ids.is_made(context.sources, context.target, "x.id"),
        "is_tool": ids.has_kind(context.sources, ids.SUBSCRIPTION_TOOL, "t.id"),
        "is_project_tool": ids.has_kind(context.sources, ids.PROJECT_TOOL, "t.id"),
        "project_key": key_from_text(
            "(t.configuration ->> 'project_id')", context.sources.projects.columns["id"].base
        ),
        "is_assigned_tool": ids.has_kind(context.sources, ids.SUBSCRIPTION_TOOL, "a.tool_id"),
        "is_usage": ids.has_kind(context.sources, ids.SUBSCRIPTION_USAGE, "l.id"),
        "is_used_tool": ids.has_kind(context.sources, ids.SUBSCRIPTION_TOOL, "l.tool_id"),
    }
