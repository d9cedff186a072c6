"""The guide's three fixes for what was damaged after a migration, as statements over a page.

Each touches only what is wrong, of users whom a run migrated that is not rolled back. Each returns
its changes, one row a column or a created row: (table, key, column, before, after), and changes
nothing when it is repeated.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import text

from models.dashboard import ids, made
from models.dashboard.projects.apply import Projects
from models.engine.repair import Change, Repair
from models.engine.rollback import lock_rows
from models.engine.step import Context, Scope

COLUMNS = ("table", "key", "column", "before", "after")

# The runs that migrated the user `u`, by what they left there, less those that are rolled back. A
# run of all users may leave nothing where a rollback before it kept the grant.
_MIGRATED_BY = """
  SELECT r.id FROM migration.runs r
  WHERE r.state <> 'rolled_back' AND (
    EXISTS (SELECT FROM {credit_logs} c
      WHERE c.user_id = u.id AND c.reason IN ('migration_grant', 'migration_opening')
        AND (c.run_id::text = r.id OR (r.selection IS NULL AND c.run_id::text < r.id)))
    OR EXISTS (SELECT FROM migration.before_images i
      WHERE i.entity = 'user' AND i.legacy_key = u.id::text AND i.run_id = r.id))"""

# Whom a repair is for, as a condition on the user `u`. A suite proves nothing by itself: it may be
# the application's own. One with our id does, unless a rollback kept it: where the grant is lost
# and the before-images were dropped, nothing else says that the user was migrated.
_IS_MIGRATED = """EXISTS (SELECT FROM {ai_suites} h WHERE h.user_id = u.id)
  AND (EXISTS ({migrated_by}) OR EXISTS (
    SELECT FROM {ai_suites} h WHERE h.id = {suite_id} AND h.user_id = u.id AND NOT EXISTS (
      SELECT FROM migration.conflicts k
      WHERE k.table_name = 'ai_suites' AND k.row_key = h.id::text)))
  AND NOT EXISTS (
    SELECT FROM migration.quarantine q WHERE q.entity = 'user' AND q.legacy_key = u.id::text
      AND q.state IN ('open', 'accepted'))"""

# A value that was there before the migration comes back (rule 1), and stays where it is there. Only
# the other ones follow rule 3.
_MISSING_DATA = """
WITH lacking AS MATERIALIZED (
  SELECT u.id, u.user_type, u.billing_tier, u.is_active,
    coalesce({kept_user_type}, {user_type}) AS type,
    coalesce({kept_billing_tier}, 'free') AS tier,
    coalesce({kept_is_active}, 'true') AS activity
  FROM {users} u
  CROSS JOIN LATERAL (SELECT {role} AS name) AS role
  LEFT JOIN LATERAL (
    SELECT i.was FROM migration.before_images i
    JOIN migration.runs r ON r.id = i.run_id AND r.state <> 'rolled_back'
    WHERE i.entity = 'user' AND i.legacy_key = u.id::text
    ORDER BY i.run_id DESC LIMIT 1
  ) AS image ON true
  WHERE {scope} AND (u.user_type IS NULL OR u.billing_tier IS NULL OR u.is_active IS NULL)
    AND {is_migrated}
  ORDER BY u.id FOR NO KEY UPDATE OF u
),
filled AS (
  UPDATE {users} u SET
    user_type = coalesce(u.user_type, CAST(l.type AS {user_type_type})),
    billing_tier = coalesce(u.billing_tier, CAST(l.tier AS {billing_tier_type})),
    is_active = coalesce(u.is_active, CAST(l.activity AS boolean))
  FROM lacking l WHERE u.id = l.id
)
SELECT 'users', l.id::text, c.name, NULL::text, c.value
FROM lacking l CROSS JOIN LATERAL (
  SELECT 'user_type' AS name, l.type AS value WHERE l.user_type IS NULL
  UNION ALL SELECT 'billing_tier', l.tier WHERE l.billing_tier IS NULL
  UNION ALL SELECT 'is_active', l.activity WHERE l.is_active IS NULL
) AS c
"""
_KEPT = "CASE WHEN image.was -> 'kept' ? '{0}' THEN image.was ->> '{0}' END"

# The users of a page by the first run that migrated them. The newest run, where only a suite is
# left of it.
_RUNS = """
SELECT coalesce(own.id, :run_id) AS run_id, array_agg(u.id::text ORDER BY u.id) AS keys
FROM {users} u
LEFT JOIN LATERAL ({migrated_by} ORDER BY r.id LIMIT 1) AS own ON true
WHERE {scope} AND {is_migrated}
GROUP BY 1 ORDER BY 1
"""

# Rules 5 and 8, for subscriptions of which something is gone.
_TOOLS = """
WITH found AS MATERIALIZED (
  SELECT {tool_id} AS tool_id, {usage_id} AS usage_id, u.id AS user_id, own.id AS suite_id,
    {gpt_id} AS gpt_id, {version} AS version, {is_active} AS is_active,
    {preferences} AS preferences
  FROM {users} u JOIN {subscriptions} s ON s.user_id = u.id
  CROSS JOIN LATERAL ({oldest_suite}) AS own
  WHERE {scope} AND {is_migrated}
    AND btrim(coalesce({gpt_id}, ''), :blanks) <> ''
    AND coalesce(jsonb_typeof({preferences}), '') IN ('object', 'null')
    AND NOT EXISTS (
      SELECT FROM migration.quarantine q WHERE q.entity = 'subscription'
        AND q.legacy_key = s.id::text AND q.state IN ('open', 'accepted'))
    AND NOT (EXISTS (SELECT FROM {ai_tools} t WHERE t.id = {tool_id})
      AND EXISTS (SELECT FROM {tool_assignments} a
                  WHERE a.tool_id = {tool_id} AND a.user_id = u.id)
      AND EXISTS (SELECT FROM {tool_usage_logs} l WHERE l.id = {usage_id}))
),
lacking AS MATERIALIZED (SELECT s.*, {tool_configuration} AS configuration FROM found s),
tool AS ({insert_tools} lacking s ON CONFLICT (id) DO NOTHING RETURNING id),
assignment AS ({insert_assignments} lacking s
  ON CONFLICT (tool_id, user_id) DO NOTHING
  RETURNING tool_id::text || ' ' || user_id::text AS id
),
usage_log AS ({insert_usage_logs} lacking s ON CONFLICT (id) DO NOTHING RETURNING id)
SELECT 'ai_tools', id::text, NULL::text, NULL::text, 'created' FROM tool
UNION ALL SELECT 'tool_assignments', id, NULL, NULL, 'created' FROM assignment
UNION ALL SELECT 'tool_usage_logs', id::text, NULL, NULL, 'created' FROM usage_log
"""

# Projects that point at their own tool, of which something is gone (rule 6).
_PROJECTS_LACKING = """
SELECT p.id::text FROM {users} u JOIN {projects} p ON p.user_id = u.id
WHERE {scope} AND {is_migrated} AND {active_gpt} = ({project_tool_id})::text AND NOT (
  EXISTS (SELECT FROM {ai_tools} t WHERE t.id = {project_tool_id})
  AND EXISTS (SELECT FROM {tool_assignments} a
              WHERE a.tool_id = {project_tool_id} AND a.user_id = u.id)
  AND EXISTS (SELECT FROM {tool_usage_logs} l WHERE l.id = {project_usage_id}))
"""
# Where the tool is there, `projects.py` takes the project for migrated.
_COMPLETE_PROJECTS = """
WITH tool AS MATERIALIZED (
  SELECT t.id AS tool_id, p.user_id, {project_usage_id} AS usage_id
  FROM {projects} p JOIN {ai_tools} t ON t.id = {project_tool_id} WHERE {projects_scope}
),
assignment AS ({insert_assignments} tool s ON CONFLICT (tool_id, user_id) DO NOTHING)
{insert_usage_logs} tool s ON CONFLICT (id) DO NOTHING
"""
_OF_PROJECTS = """
SELECT 'ai_tools' AS name, t.id::text
FROM {projects} p JOIN {ai_tools} t ON t.id = {project_tool_id}
WHERE {projects_scope}
UNION ALL
SELECT 'tool_assignments', a.tool_id::text || ' ' || a.user_id::text
FROM {projects} p JOIN {tool_assignments} a ON a.tool_id = {project_tool_id}
WHERE {projects_scope}
UNION ALL
SELECT 'tool_usage_logs', l.id::text
FROM {projects} p JOIN {tool_usage_logs} l ON l.id = {project_usage_id} WHERE {projects_scope}
"""

# Rule 7: the log decides. A charge that no log row stands for would be given back by that.
_UNBALANCED = """
SELECT u.id, u.credits_balance AS balance, log.total, charged.unlogged
FROM {users} u
CROSS JOIN LATERAL (
  SELECT
    coalesce(sum(CASE c.operation WHEN 'deduct' THEN -c.amount ELSE c.amount END), 0) AS total,
    coalesce(sum(c.amount) FILTER (WHERE c.operation = 'deduct'
      AND c.reason IS DISTINCT FROM 'migration_opening'), 0) AS deducted
  FROM {credit_logs} c WHERE c.user_id = u.id
) AS log
CROSS JOIN LATERAL (
  SELECT coalesce(sum(l.credits_used), 0) > log.deducted AS unlogged
  FROM {tool_usage_logs} l WHERE l.user_id = u.id AND l.credits_used <> 0
) AS charged
WHERE {scope} AND {is_migrated} AND u.credits_balance IS DISTINCT FROM log.total
"""
_CREDITS = (
    "WITH wrong AS MATERIALIZED (" + _UNBALANCED + "),"
    """
corrected AS (
  UPDATE {users} u SET credits_balance = w.total FROM wrong w
  WHERE u.id = w.id AND (:forced OR NOT w.unlogged)
)
SELECT 'users', w.id::text, 'credits_balance', w.balance::text, w.total::text
FROM wrong w WHERE :forced OR NOT w.unlogged
"""
)
_LEFT_ALONE = (
    "WITH wrong AS MATERIALIZED (" + _UNBALANCED + ")"
    """
SELECT 'users', w.id::text, 'credits_balance', w.balance::text, w.total::text
FROM wrong w WHERE w.unlogged
"""
)


def missing_data(context: Context, scope: Scope, *, force: bool = False) -> list[Change]:
    """Fill in a user's type, tier and activity where they are null, as they were if known."""
    return _changes(context, _MISSING_DATA, scope)


def tools(context: Context, scope: Scope, *, force: bool = False) -> list[Change]:
    """Create the tools, assignments and usage logs that subscriptions and projects lack.

    They belong to the run that migrated the user: they go with its rollback, and with no other.
    """
    by_run = context.execute(_RUNS, scope, **_expressions(context, scope)).all()
    return [
        change
        for run_id, keys in by_run
        for change in _tools(_as_run(context, run_id), scope.only(keys))
    ]


def _as_run(context: Context, run_id: str) -> Context:
    """The same context for rows of a run that is not the newest."""
    if run_id == context.run_id:
        return context
    return replace(context, run_id=run_id, own_run=None, is_repeat=True)


def _tools(context: Context, scope: Scope) -> list[Change]:
    found = _changes(context, _TOOLS, scope)
    names = _expressions(context, scope)
    lacking = list(context.execute(_PROJECTS_LACKING, scope, **names).scalars())
    if lacking:
        only = scope.only(lacking)
        key = context.sources.projects.columns["id"].base
        names["projects_scope"] = only.condition("p.id", key)

        def present() -> set[tuple[str, str]]:
            return {tuple(row) for row in context.execute(_OF_PROJECTS, only, **names)}

        before = present()
        Projects().apply(context, only)
        context.execute(_COMPLETE_PROJECTS, only, **names)
        found += [
            dict(zip(COLUMNS, (table, key, None, None, "created"), strict=True))
            for table, key in sorted(present() - before)
        ]
    return found


def credits(context: Context, scope: Scope, *, force: bool = False) -> list[Change]:
    """Set the balance to what the log gives; by force also where usage was charged without one."""
    wrong = context.execute(
        f"SELECT w.id::text FROM ({_UNBALANCED}) AS w", scope, **_expressions(context, scope)
    )
    only = scope.only(wrong.scalars().all())
    if not only.keys:
        return []
    # Locked before the statement takes its snapshot, so that balance and log belong together.
    lock_rows(context, context.sources.users, only)
    return _changes(context, _CREDITS, only, forced=force)


def left_alone(context: Context, scope: Scope) -> list[Change]:
    """Users whose balance `credits` leaves, since they were charged without a log row."""
    return _changes(context, _LEFT_ALONE, scope)


REPAIRS = {
    "missing-data": Repair(missing_data),
    "tools": Repair(tools),
    "credits": Repair(credits, left_alone, audited="credits_balance"),
}


def _changes(context: Context, statement: str, scope: Scope, **values: Any) -> list[Change]:
    rendered = context.render(statement, **_expressions(context, scope))
    rows = context.connection.execute(
        text(rendered), context.parameters | scope.parameters | values
    )
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows]


def _expressions(context: Context, scope: Scope) -> dict[str, str]:
    users, subscriptions = context.sources.users, context.sources.subscriptions
    key, project_key = (
        table.columns["id"].base for table in (subscriptions, context.sources.projects)
    )
    migrated_by = context.render(_MIGRATED_BY)
    suite_id = ids.id_of(context.sources, ids.SUITE, "u.id", users.columns["id"].base)
    return {
        **made.expressions(context),
        **{
            f"kept_{column}": _KEPT.format(column)
            for column in ("user_type", "billing_tier", "is_active")
        },
        "scope": scope.condition("u.id", users.columns["id"].base),
        "migrated_by": migrated_by,
        "is_migrated": context.render(_IS_MIGRATED, migrated_by=migrated_by, suite_id=suite_id),
        "tool_id": ids.id_of(context.sources, ids.SUBSCRIPTION_TOOL, "s.id", key),
        "usage_id": ids.id_of(context.sources, ids.SUBSCRIPTION_USAGE, "s.id", key),
        "project_tool_id": ids.id_of(context.sources, ids.PROJECT_TOOL, "p.id", project_key),
        "project_usage_id": ids.id_of(context.sources, ids.PROJECT_USAGE, "p.id", project_key),
    }
