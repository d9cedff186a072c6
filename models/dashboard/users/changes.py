"""What a later change of a user or a subscription does to the rows that stand for them.

A value that the application changed in a legacy row goes into the target row, as long as the new
application has left that alone; what has no legacy row any more is taken away. Ids stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import text

from models.dashboard import ids
from models.dashboard.schema import USER_DEFAULTS
from models.dashboard.tools import is_untouched, remove_deleted_users, remove_tools
from models.engine.step import Context, Counts, Scope
from models.postgres.keys import key_from_text, list_cast

# Tools that come from another user, or go to one: the batch of the old owner takes them away, or
# the new one has them. Every batch locks its rows in one statement and in one order: no deadlock.
_LOCK_MOVED = """
SELECT count(*) FROM (
  SELECT FROM {ai_tools} t WHERE t.id = ANY(ARRAY(
    SELECT {tool_id} FROM {users} u
    JOIN {subscriptions} s ON s.user_id = u.id AND {subscriptions_scope}
    JOIN {ai_tools} t ON t.id = {tool_id} JOIN {ai_suites} home ON home.id = t.suite_id
    WHERE {scope} AND {parts} AND home.user_id <> u.id
    UNION SELECT doomed.id FROM ({surplus}) AS doomed))
  ORDER BY t.id FOR UPDATE OF t) AS locked
"""

# Those that moved since then, locked by the statement that reads their subscriptions, before it
# looks for a tool: else the old owner's batch removes that tool between the statement's parts, and
# the statement writes the assignment and the usage log of a tool that is gone.
_MOVED = """moved AS MATERIALIZED (
  SELECT t.id FROM subscription s JOIN {ai_tools} t ON t.id = s.tool_id
  JOIN {ai_suites} home ON home.id = t.suite_id
  WHERE s.reason IS NULL AND home.user_id <> s.user_id
  ORDER BY t.id FOR UPDATE OF t
),
"""

# Of the user `u`, from this run. OFFSET keeps the planner from starting with all images, which it
# takes for few while the new table has no statistics.
OWN_IMAGE = """
  SELECT i.was FROM migration.before_images i
  WHERE i.entity = 'user' AND i.legacy_key = u.id::text AND i.run_id = :own_run OFFSET 0
"""

# Users whom this run migrated, and who are bad now: a fresh migration would quarantine them.
_TURNED_BAD = """
SELECT u.id::text FROM {users} u
CROSS JOIN LATERAL ({own_image}) AS b
WHERE {scope} AND {email_is_blank}
"""

# The same for those whom the database refuses now, though it took them before.
_REFUSED = """
SELECT u.id::text FROM {users} u
CROSS JOIN LATERAL ({own_image}) AS b
JOIN migration.quarantine q ON q.entity = 'user' AND q.legacy_key = u.id::text
  AND q.state IN ('open', 'accepted')
WHERE {scope}
"""

_RENAMED = """
WITH taken AS (
  DELETE FROM migration.changes c WHERE c.entity = 'user' AND c.operation = 'RENAME'
  RETURNING c.id, c.legacy_key, c.owner_key
)
SELECT t.legacy_key AS old_key, t.owner_key AS new_key FROM taken t ORDER BY t.id
"""

_TOOLS_OF_THIS_RUN = """
  SELECT t.id, t.suite_id FROM {users} u
  JOIN {ai_suites} s ON s.user_id = u.id
  JOIN {ai_tools} t ON t.suite_id = s.id
  JOIN {tool_usage_logs} l ON l.session_id = :own_run
    AND l.id IN ({subscription_usage}, {project_usage})
  WHERE {scope} AND ({is_tool} OR {is_project_tool})
"""

# The user's own columns, as they were before this run migrated the user under the key `was_key`.
_WITHDRAW = """
WITH given AS MATERIALIZED (SELECT u.id, {was_key} AS was_key FROM {users} u WHERE {scope}),
credit AS (
  DELETE FROM {credit_logs} c USING given g
  WHERE c.user_id = g.was_key AND c.reason IN ('migration_grant', 'migration_opening')
    AND c.run_id = :own_run
  RETURNING g.id, c.reason, c.amount
),
image AS (
  DELETE FROM migration.before_images b USING given g
  WHERE b.entity = 'user' AND b.legacy_key = g.was_key::text AND b.run_id = :own_run
    AND b.legacy_key = ANY(ARRAY(SELECT d.was_key::text FROM given d))
  RETURNING g.id, b.was, coalesce(b.was -> 'kept', '[]') AS kept
),
suite AS (
  DELETE FROM {ai_suites} s USING given g
  WHERE s.id = {suite_id} AND NOT EXISTS (
    SELECT FROM {ai_tools} t WHERE t.suite_id = s.id)
  RETURNING 1
),
restored AS (
  UPDATE {users} u SET
    {columns}
    department_id = CASE WHEN i.kept ? 'organization_id' THEN u.department_id
      ELSE CAST(i.was ->> 'department_id' AS {department_type}) END,
    credits_balance = CASE WHEN g.amount IS NULL THEN u.credits_balance
      WHEN i.was ? 'credits_balance' THEN u.credits_balance - g.amount
      ELSE nullif(u.credits_balance - g.amount, {nothing}) END
  FROM image i LEFT JOIN credit g ON g.id = i.id AND g.reason = 'migration_grant'
  WHERE u.id = i.id
)
SELECT -(SELECT count(*) FROM suite) AS ai_suites,
  -(SELECT coalesce(sum(amount), 0) FROM credit WHERE reason = 'migration_grant') AS credits_granted
"""

# After `users.py` has written what is missing: suites exist, tools and assignments too. What a
# subscription that is quarantined had elsewhere is left whole, for the old owner's batch to remove.
_REFRESH = """
WITH expected AS MATERIALIZED (
  SELECT s.*, {tool_configuration} AS configuration FROM (
    SELECT {tool_id} AS tool_id, {usage_id} AS usage_id, s.user_id, {gpt_id} AS name,
      {version} AS version, {is_active} AS is_active, {preferences} AS preferences,
      own.id AS suite_id
    FROM {users} u JOIN {subscriptions} s ON s.user_id = u.id AND {subscriptions_scope}
    JOIN LATERAL ({oldest_suite}) AS own ON true
    WHERE {scope} AND {parts} AND NOT {email_is_blank}
      AND NOT {gpt_id_is_blank}
    OFFSET 0
  ) AS s WHERE jsonb_typeof(s.preferences) IN ('object', 'null')
),
tool AS (
  UPDATE {ai_tools} t SET name = e.name, version = e.version, is_active = e.is_active,
    configuration = e.configuration::{tool_json},
    suite_id = CASE WHEN home.user_id = e.user_id THEN t.suite_id ELSE e.suite_id END
  FROM expected e, {ai_suites} home
  WHERE t.id = e.tool_id AND home.id = t.suite_id
    AND {still_ours}
    AND (home.user_id <> e.user_id OR t.name <> e.name
      OR t.version IS DISTINCT FROM e.version OR t.is_active IS DISTINCT FROM e.is_active
      OR t.configuration::jsonb IS DISTINCT FROM e.configuration)
  RETURNING t.id
),
assignment AS (
  DELETE FROM {tool_assignments} a USING expected e
  WHERE a.tool_id = e.tool_id AND a.user_id <> e.user_id
    AND a.assigned_by IS NOT DISTINCT FROM {assigned_by}
  RETURNING 1
),
-- Written beside its tool, also where it stays the same: `undo_users.py` counts on that.
usage_log AS (
  UPDATE {tool_usage_logs} l SET user_id = e.user_id
  FROM expected e LEFT JOIN tool ON tool.id = e.tool_id
  WHERE l.id = e.usage_id AND (l.user_id <> e.user_id OR tool.id IS NOT NULL)
),
suite AS (
  UPDATE {ai_suites} s SET name = {email} || {suite_suffix} FROM {users} u
  WHERE {scope} AND s.id = {suite_id} AND s.name <> {email} || {suite_suffix}
    AND (s.updated_at IS NOT DISTINCT FROM s.created_at OR EXISTS ({own_image}))
    AND NOT {email_is_blank}
)
SELECT -(SELECT count(*) FROM assignment) AS tool_assignments
"""

# Another role, hence another type and another grant: for users whom this run gave theirs.
_RETYPE = """
WITH stale AS MATERIALIZED (
  SELECT u.id, {grant_id} AS grant_id, given.type, c.amount AS before, g.amount AS after
  FROM {users} u
  CROSS JOIN LATERAL ({own_image}) AS b
  JOIN {credit_logs} c ON c.id = {grant_id} AND c.run_id = :own_run
  CROSS JOIN LATERAL (SELECT {role} AS name) AS role
  CROSS JOIN LATERAL (SELECT {user_type} AS type) AS given
  CROSS JOIN LATERAL (SELECT {role_amount} AS amount) AS g
  WHERE {scope} AND NOT coalesce(b.was -> 'kept', '[]') ? 'user_type'
    AND u.user_type::text <> given.type
  FOR NO KEY UPDATE OF u
),
granted AS (
  UPDATE {credit_logs} c SET amount = s.after, balance_after = c.balance_after - s.before + s.after
  FROM stale s WHERE c.id = s.grant_id
),
image AS (
  UPDATE migration.before_images b SET was = b.was || jsonb_build_object('type', s.type)
  FROM stale s
  WHERE b.entity = 'user' AND b.legacy_key = s.id::text AND b.run_id = :own_run
),
retyped AS (
  UPDATE {users} u SET user_type = CAST(s.type AS {user_type_type}),
    credits_balance = u.credits_balance - s.before + s.after
  FROM stale s WHERE u.id = s.id
)
SELECT coalesce(sum(after - before), 0) AS credits_granted FROM stale
"""

# Tools whose subscription or project is gone, has another owner or was quarantined in this run.
_SURPLUS = """
  SELECT t.id, t.suite_id FROM {users} u
  JOIN {ai_suites} o ON o.user_id = u.id AND {suites_scope}
  JOIN {ai_tools} t ON t.suite_id = o.id
  LEFT JOIN (
    WITH theirs AS MATERIALIZED (
      SELECT s.user_id, {tool_id} AS tool_id, q.legacy_key IS NOT NULL AS is_bad
      FROM {users} u JOIN {subscriptions} s ON s.user_id = u.id AND {subscriptions_scope}
      LEFT JOIN migration.quarantine q ON q.entity = 'subscription' AND q.legacy_key = s.id::text
        AND q.state IN ('open', 'accepted')
      WHERE {scope})
    SELECT * FROM theirs
  ) AS legacy ON legacy.tool_id = t.id AND legacy.user_id = u.id
  LEFT JOIN {tool_usage_logs} l ON l.id = {subscription_usage}
  WHERE {scope} AND {is_tool} AND legacy.is_bad IS NOT FALSE
    AND (l.session_id = :own_run OR legacy.is_bad IS NULL AND {is_made} AND {untouched})
  UNION ALL
  SELECT t.id, t.suite_id FROM {users} u
  JOIN {ai_suites} o ON o.user_id = u.id AND {suites_scope}
  JOIN {ai_tools} t ON t.suite_id = o.id
  WHERE {scope} AND {is_project_tool} AND {untouched} AND t.id = {project_tool}
    AND NOT EXISTS (SELECT FROM {projects} p WHERE p.id = {project_key})
"""


def locks(context: Context, *, may_be_there: bool) -> dict[str, str]:
    """Expressions that lock moved tools before any of them is looked for; empty in a first run."""
    if not may_be_there:
        return {"moved": "", "once_locked": ""}
    return {
        "moved": context.render(_MOVED),
        "once_locked": "AND (SELECT count(*) FROM moved) >= 0",
    }


def before(context: Context, scope: Scope, names: dict[str, str]) -> Iterator[Counts]:
    """What goes before the rows are written anew: users who are gone, bad now, or renamed."""
    lock = _LOCK_MOVED.replace("{surplus}", _SURPLUS)
    context.execute(lock, scope, **_tools(context, names), **names)
    if scope.again:
        yield from _withdraw_renamed(context)
        yield from remove_deleted_users(context, scope)
    yield from _withdraw(context, scope, names, _TURNED_BAD)


def _withdraw(
    context: Context, scope: Scope, names: dict[str, str], which: str
) -> Iterator[Counts]:
    bad = list(context.execute(which, scope, **names).scalars())
    if bad:
        only = scope.only(bad)
        in_scope = only.condition("u.id", context.sources.users.columns["id"].base)
        names = names | {"scope": in_scope}
        yield remove_tools(context, _TOOLS_OF_THIS_RUN, only, **_tools(context, names), **names)
        yield _restore(context, only.parameters, in_scope, "u.id")


def _withdraw_renamed(context: Context) -> Iterator[Counts]:
    """A user with another key has the columns and the balance that were given under the old one.

    Newest first, each user's own present key before any: what was given last is taken first.
    """
    kind = list_cast(context.sources.users.columns["id"].base)
    scope, was = f"u.id = CAST(:key AS {kind})", f"CAST(:was AS {kind})"
    renamed = context.connection.execute(text(_RENAMED)).all()
    key_now: dict[str, str] = {}
    for row in reversed(renamed):
        if row.new_key not in key_now:
            yield _restore(context, {"key": row.new_key, "was": row.new_key}, scope, was)
        key = key_now[row.old_key] = key_now.get(row.new_key, row.new_key)
        yield _restore(context, {"key": key, "was": row.old_key}, scope, was)


def _restore(context: Context, parameters: dict[str, Any], scope: str, was_key: str) -> Counts:
    columns = context.sources.users.columns
    kind = columns["id"].base
    statement = context.render(
        _WITHDRAW,
        scope=scope,
        was_key=was_key,
        suite_id=ids.id_of(context.sources, ids.SUITE, "g.was_key", kind),
        columns=_restored(context),
        department_type=columns["department_id"].type,
        nothing="NULL" if columns["credits_balance"].not_null else "0",
    )
    row = context.connection.execute(text(statement), context.parameters | parameters).one()
    return {
        "rows": {"ai_suites": row.ai_suites},
        "credits_granted": str(row.credits_granted),
    }


def after(context: Context, scope: Scope, names: dict[str, str]) -> Iterator[Counts]:
    """What goes after them: changed values, another role, and tools that stand for nothing."""
    yield {"rows": dict(context.execute(_REFRESH, scope, **names).one()._mapping)}
    yield {"credits_granted": str(context.execute(_RETYPE, scope, **names).scalar())}
    if scope.parts is None:
        yield remove_tools(context, _SURPLUS, scope, **_tools(context, names), **names)


def withdraw(context: Context, scope: Scope, names: dict[str, str]) -> Iterator[Counts]:
    """What is quarantined since it was refused keeps nothing that this run made of it."""
    yield from _withdraw(context, scope, names, _REFUSED)
    yield remove_tools(context, _SURPLUS, scope, **_tools(context, names), **names)


def _tools(context: Context, names: dict[str, str]) -> dict[str, str]:
    kind = context.sources.projects.columns["id"].base
    project_key = key_from_text("(t.configuration::jsonb ->> 'project_id')", kind)
    return {
        "is_tool": ids.has_kind(context.sources, ids.SUBSCRIPTION_TOOL, "t.id"),
        "is_project_tool": ids.has_kind(context.sources, ids.PROJECT_TOOL, "t.id"),
        "subscription_usage": ids.usage_of(context.sources, "t.id", ids.SUBSCRIPTION_TOOL),
        "project_usage": ids.usage_of(context.sources, "t.id", ids.PROJECT_TOOL),
        "project_key": project_key,
        "project_tool": ids.id_of(context.sources, ids.PROJECT_TOOL, project_key, kind),
        "untouched": is_untouched(context, "t", names["assigned_by"]),
        "is_made": ids.is_made(context.sources, context.target, "t.id"),
    }


def _restored(context: Context) -> str:
    """SET clauses that give the columns their values of before; what was kept is left alone."""
    columns = context.sources.users.columns
    clauses = []
    for name in (*(n for n in USER_DEFAULTS if n != "credits_balance"), "organization_id"):
        stays = f"i.kept ? '{name}'"
        if columns[name].not_null:
            # The end of a run sets NOT NULL: what was null before cannot be null again.
            stays += f" OR i.was ->> '{name}' IS NULL"
        was = f"CAST(i.was ->> '{name}' AS {columns[name].type})"
        clauses.append(f"{name} = CASE WHEN {stays} THEN u.{name} ELSE {was} END,\n    ")
    return "".join(clauses)
