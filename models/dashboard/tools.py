"""Taking target rows away: a tool with all that hangs on it, a user with all that was theirs."""

from __future__ import annotations

from models.engine.step import Context, Counts, Scope, counts
from models.postgres.keys import list_cast

# A tool that the new application has changed, used or shared since is no longer ours to take.
_UNTOUCHED = """({alias}.updated_at IS NOT DISTINCT FROM {alias}.created_at
  AND NOT EXISTS (SELECT FROM {tool_usage_logs} x
    WHERE x.tool_id = {alias}.id AND x.action IS DISTINCT FROM 'migration')
  AND NOT EXISTS (SELECT FROM {tool_assignments} x
    WHERE x.tool_id = {alias}.id AND x.assigned_by IS DISTINCT FROM {assigned_by})
  AND NOT EXISTS (SELECT FROM {marketplace_listings} x WHERE x.tool_id = {alias}.id))"""

# The tool `t` of the row `e` is as the migration made it, or this run made it: then it is still its
# own, whatever a trigger of the application does to `updated_at`.
_STILL_OURS = """(t.updated_at IS NOT DISTINCT FROM t.created_at OR EXISTS (
      SELECT FROM {tool_usage_logs} l WHERE l.id = e.usage_id AND l.session_id = :own_run))"""

# Another batch may be moving a tool to its new owner at this moment: then it is not ours any more.
# Locked by a statement of its own, so that the next one sees all that the other batch has written.
_LOCK_DOOMED = """
WITH candidate AS MATERIALIZED ({doomed})
SELECT t.id FROM {ai_tools} t JOIN candidate c
  ON c.id = t.id AND c.suite_id IS NOT DISTINCT FROM t.suite_id
ORDER BY t.id FOR UPDATE OF t
"""

_TOOLS = """
WITH listing AS (
  DELETE FROM {marketplace_listings} m WHERE m.tool_id = ANY(CAST(:keys AS {tool_kind}[]))
),
usage_log AS (
  DELETE FROM {tool_usage_logs} l WHERE l.tool_id = ANY(CAST(:keys AS {tool_kind}[]))
  RETURNING l.session_id IS NOT DISTINCT FROM :run_id AND l.action = 'migration' AS is_ours
),
assignment AS (
  DELETE FROM {tool_assignments} a WHERE a.tool_id = ANY(CAST(:keys AS {tool_kind}[])) RETURNING 1
),
tool AS (
  DELETE FROM {ai_tools} t WHERE t.id = ANY(CAST(:keys AS {tool_kind}[])) RETURNING 1
)
SELECT -(SELECT count(*) FROM usage_log WHERE is_ours) AS tool_usage_logs,
  -(SELECT count(*) FROM assignment) AS tool_assignments,
  -(SELECT count(*) FROM tool) AS ai_tools
"""

_GONE = """
SELECT k.id::text FROM unnest(CAST(:keys AS {kind}[])) AS k(id)
WHERE NOT EXISTS (SELECT FROM {users} u WHERE u.id = k.id)
"""

_AGAIN = """
SELECT u.id::text FROM {users} u
WHERE u.id = ANY(CAST(:keys AS {kind}[])) AND coalesce(u.credits_balance, 0) <> (
  SELECT coalesce(sum(CASE WHEN c.operation = 'deduct' THEN -c.amount ELSE c.amount END), 0)
  FROM {credit_logs} c WHERE c.user_id = u.id)
"""

_THEIR_TOOLS = """
  SELECT t.id, t.suite_id FROM {ai_suites} s JOIN {ai_tools} t ON t.suite_id = s.id
  WHERE s.user_id = ANY(CAST(:keys AS {kind}[]))
"""

_THEIRS = """
WITH image AS (
  DELETE FROM migration.before_images b WHERE b.entity = 'user'
    AND b.legacy_key = ANY(CAST(:keys AS text[])) AND b.run_id = :run_id
),
usage_log AS (
  DELETE FROM {tool_usage_logs} l WHERE l.user_id = ANY(CAST(:keys AS {kind}[]))
  RETURNING l.session_id IS NOT DISTINCT FROM :run_id AND l.action = 'migration' AS is_ours
),
assignment AS (
  DELETE FROM {tool_assignments} a WHERE a.user_id = ANY(CAST(:keys AS {kind}[]))
),
credit AS (
  DELETE FROM {credit_logs} c WHERE c.user_id = ANY(CAST(:keys AS {kind}[]))
  RETURNING CASE WHEN c.run_id = :run_id AND c.reason = 'migration_grant' THEN c.amount END
    AS granted
),
suite AS (
  DELETE FROM {ai_suites} s WHERE s.user_id = ANY(CAST(:keys AS {kind}[])) RETURNING 1
)
SELECT -(SELECT count(*) FROM usage_log WHERE is_ours) AS tool_usage_logs,
  -(SELECT count(*) FROM suite) AS ai_suites,
  -(SELECT coalesce(sum(granted), 0) FROM credit) AS credits_granted
"""


def remove_tools(context: Context, doomed: str, scope: Scope, /, **names: str) -> Counts:
    """Delete the tools whose ids `doomed` selects, and what hangs on them; counts are negative."""
    lock = _LOCK_DOOMED.replace("{doomed}", doomed)
    if not (found := context.execute(lock, scope, **names).scalars().all()):
        return {"rows": {}}
    only, kind = scope.only(found), context.target.table("ai_tools").columns["id"].base
    return {"rows": dict(context.execute(_TOOLS, only, tool_kind=list_cast(kind)).one()._mapping)}


def remove_deleted_users(context: Context, scope: Scope) -> list[Counts]:
    """Delete what users of a list of keys left behind who are gone."""
    return _remove_users(context, scope, _GONE)


def remove_reinserted_users(context: Context, scope: Scope) -> list[Counts]:
    """The same for users who were deleted and are there again: the rows are of the user before.

    Their balance says so; where a foreign key has deleted the rows, nothing is left to be wrong.
    """
    return _remove_users(context, scope, _AGAIN)


def _remove_users(context: Context, scope: Scope, which: str) -> list[Counts]:
    """Delete all that some of the users have in the target; ON DELETE CASCADE by hand.

    The foreign keys that would do it come after the load.
    """
    kind = list_cast(context.sources.users.columns["id"].base)
    found = context.execute(which, scope, kind=kind).scalars().all()
    if not found:
        return []
    only = scope.only(found)
    return [
        remove_tools(context, _THEIR_TOOLS, only, kind=kind),
        counts(context.execute(_THEIRS, only, kind=kind).one()),
    ]


def is_untouched(context: Context, alias: str, assigned_by: str) -> str:
    """SQL condition: the tool under this alias is as the migration made it, and nobody uses it."""
    return context.render(_UNTOUCHED, alias=alias, assigned_by=assigned_by)


def is_still_ours(context: Context) -> str:
    """SQL condition on `t` and `e`: the migration may bring the tool in line with its row."""
    return context.render(_STILL_OURS)
