"""The undo of `users.py` and `projects.py`: created rows go, the users' columns go back.

A created row and its companion (a tool and its usage log, a suite and its user's before-image)
were written by one statement, so they carry the same `xmin` until somebody updates one of them.
Where it differs (a database that was restored from a dump has other ones), values decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from models.dashboard import ids, made
from models.dashboard.scopes import owned
from models.dashboard.sources import USERS
from models.dashboard.tools import remove_tools
from models.engine.rollback import NOTE, lock_rows, note_refused
from models.engine.step import Context, Counts, Scope, Step, add, counts
from models.postgres.catalog import quote

# With the lock, the insert of a row that depends on one of these waits for this transaction.
_LOCK_SUITES = """
SELECT count(*) FROM (
  SELECT FROM {ai_suites} s WHERE {suites_scope} ORDER BY s.id FOR UPDATE) AS locked
"""
_LOCK_TOOLS = """
SELECT count(*) FROM (
  SELECT FROM {ai_tools} t WHERE t.id = ANY(ARRAY(
    SELECT l.tool_id FROM {tool_usage_logs} l WHERE {usage_scope} AND l.session_id = :run_id))
  ORDER BY t.id FOR UPDATE) AS locked
"""

# The tools of the run, and for each whether it is as the run made it.
_TOOLS_MADE = """
WITH made AS MATERIALIZED (
  SELECT l.id AS usage_id, l.tool_id, l.user_id, l.xmin AS made_in,
    l.id = {usage_of_tool} AND l.action = 'migration' AND l.credits_used = 0
      AND l.status = 'completed' AND l.error_message IS NULL AND l.module_id IS NULL
      AND l.parameters::text = '{{}}' AND l.duration = 0 AS is_log_untouched
  FROM {tool_usage_logs} l
  WHERE {usage_scope} AND l.session_id = :run_id AND ({is_usage})
),
tool AS MATERIALIZED (
  SELECT m.*, t.id, m.made_in = t.xmin OR (
    t.updated_at IS NOT DISTINCT FROM t.created_at AND t.tool_type = 'gpt'
    AND t.pricing_tier::text = 'free' AND t.credits_cost = 0 AND NOT t.requires_approval
    AND CASE WHEN {is_subscription_tool} THEN EXISTS (
        SELECT FROM {subscriptions} s
        WHERE s.user_id = m.user_id AND {subscription_tool} = t.id
          AND {gpt_id} = t.name AND {version} IS NOT DISTINCT FROM t.version
          AND ({is_active}) = t.is_active AND t.configuration::jsonb = (
            SELECT {tool_configuration} FROM (SELECT {preferences} AS preferences) AS s))
      ELSE t.is_active AND t.version IS NULL
        AND t.configuration::jsonb ->> 'gpt_id' IS NOT DISTINCT FROM t.name END
  ) AS is_untouched
  FROM made m LEFT JOIN {ai_tools} t ON t.id = m.tool_id
),
"""
# Why a tool stays, unless by force: somebody changed it, or something else hangs on it.
_REASONS = """
reason AS MATERIALIZED (
  SELECT 'changed' AS kind, 'ai_tools' AS table_name, t.tool_id::text AS row_key, t.tool_id
  FROM tool t WHERE NOT t.is_untouched
  UNION ALL
  SELECT 'changed', 'tool_usage_logs', t.usage_id::text, t.tool_id
  FROM tool t WHERE t.is_log_untouched IS NOT TRUE
  UNION ALL
  SELECT CASE WHEN a.user_id = t.user_id THEN 'changed' ELSE 'hanging' END, 'tool_assignments',
    a.tool_id::text || ' ' || a.user_id::text, t.tool_id
  FROM tool t JOIN {tool_assignments} a ON a.tool_id = t.tool_id
  WHERE NOT (a.user_id = t.user_id AND a.assigned_by IS NOT DISTINCT FROM {assigned_by}
    AND a.expires_at IS NULL AND a.permissions::jsonb = {full_access})
  UNION ALL
  SELECT 'hanging', 'tool_usage_logs', x.id::text, t.tool_id
  FROM tool t JOIN {tool_usage_logs} x ON x.tool_id = t.tool_id AND x.id <> t.usage_id
  UNION ALL
  SELECT 'hanging', 'marketplace_listings', x.id::text, t.tool_id
  FROM tool t JOIN {marketplace_listings} x ON x.tool_id = t.tool_id
  UNION ALL
  SELECT 'held', 'ai_tools', t.tool_id::text, t.tool_id
  FROM migration.conflicts c JOIN tool t ON t.tool_id::text = c.holds
  WHERE c.run_id = :run_id AND c.table_name = 'projects'
),
noted AS (
  {note}
  SELECT :run_id, r.kind, r.table_name, r.row_key, '', r.tool_id::text
  FROM reason r WHERE NOT :forced
  UNION
  SELECT :run_id, 'held', 'ai_tools', r.tool_id::text, '', NULL FROM reason r WHERE NOT :forced
  GROUP BY r.tool_id HAVING NOT bool_or(r.table_name = 'ai_tools')
  ON CONFLICT DO NOTHING
  RETURNING 1
),
"""
_REMOVED = """
doomed AS MATERIALIZED (
  SELECT t.tool_id FROM tool t
  WHERE :forced OR NOT EXISTS (SELECT FROM reason r WHERE r.tool_id = t.tool_id)
),
listing AS (
  DELETE FROM {marketplace_listings} m USING doomed d WHERE m.tool_id = d.tool_id
),
usage_log AS (
  DELETE FROM {tool_usage_logs} l USING doomed d WHERE l.tool_id = d.tool_id
  RETURNING l.session_id = :run_id AS is_ours
),
assignment AS (
  DELETE FROM {tool_assignments} a USING doomed d WHERE a.tool_id = d.tool_id RETURNING 1
),
gone AS (
  DELETE FROM {ai_tools} t USING doomed d WHERE t.id = d.tool_id RETURNING 1
)
SELECT -(SELECT count(*) FROM usage_log WHERE is_ours) AS tool_usage_logs,
  -(SELECT count(*) FROM assignment) AS tool_assignments,
  -(SELECT count(*) FROM gone) AS ai_tools
"""
_UNDO_TOOLS = _TOOLS_MADE + _REASONS + _REMOVED

# By force: what else is in the suites that go.
_IN_DOOMED_SUITES = """
  SELECT t.id, t.suite_id FROM {users} u
  JOIN migration.before_images b ON b.entity = 'user' AND b.legacy_key = u.id::text
    AND b.run_id = :run_id AND NOT b.was ?| ARRAY['suite', 'had_suite']
  JOIN {ai_tools} t ON t.suite_id = {suite_id}
  WHERE {scope}
"""

# What goes back, decided for each column of each user, and for each suite.
_DECIDED = """
WITH home AS ({home}),
credit AS MATERIALIZED (
  SELECT c.id, c.user_id, c.reason, c.operation, c.amount, c.balance_after
  FROM {credit_logs} c
  WHERE {logs_scope} AND c.run_id = :run_id
    AND c.reason IN ('migration_grant', 'migration_opening')
),
page AS MATERIALIZED (
  SELECT u.id, {email} AS email, {columns}, u.id::text AS legacy_key, b.was, b.xmin AS made_in,
    coalesce(b.was -> 'kept', '[]') AS kept, g.id AS grant_id, g.amount, g.balance_after,
    coalesce((b.was ->> 'credits_balance')::numeric, 0) AS balance_before,
    g.operation = 'add' AND (o.id IS NULL OR o.balance_after IS NOT DISTINCT FROM
      coalesce((b.was ->> 'credits_balance')::numeric, 0)) AS are_logs_untouched
  FROM {users} u JOIN migration.before_images b
    ON b.entity = 'user' AND b.legacy_key = u.id::text AND b.run_id = :run_id
  LEFT JOIN credit g ON g.user_id = u.id AND g.reason = 'migration_grant'
  LEFT JOIN credit o ON o.user_id = u.id AND o.reason = 'migration_opening'
  WHERE {scope}
),
decided AS MATERIALIZED (
  SELECT p.id, p.legacy_key, p.was, {decisions}
  FROM page p LEFT JOIN home h ON true
),
changed AS MATERIALIZED (
  {changes}
),
suite AS MATERIALIZED (
  SELECT s.id, p.legacy_key, p.made_in = s.xmin OR (
      s.updated_at IS NOT DISTINCT FROM s.created_at AND s.is_active AND s.description IS NULL
      AND s.user_id = p.id AND s.name = p.email || {suite_suffix}
      AND s.configuration::jsonb = {suite_configuration}) AS is_untouched,
    EXISTS (SELECT FROM {ai_tools} t WHERE t.suite_id = s.id) AS is_used
  FROM page p JOIN {ai_suites} s ON s.id = {suite_id_of_page}
  WHERE NOT p.was ?| ARRAY['suite', 'had_suite']
),
"""
_RESTORED = """
noted AS (
  {note}
  SELECT :run_id, 'changed', 'users', c.legacy_key, c.detail, NULL FROM changed c
  UNION ALL
  SELECT :run_id, CASE WHEN s.is_untouched THEN 'held' ELSE 'changed' END, 'ai_suites',
    s.id::text, '', NULL
  FROM suite s WHERE NOT :forced AND (s.is_used OR NOT s.is_untouched)
  UNION ALL
  SELECT :run_id, 'hanging', 'ai_tools', t.id::text, '', s.id::text
  FROM suite s JOIN {ai_tools} t ON t.suite_id = s.id
  WHERE NOT :forced AND NOT EXISTS (
    SELECT FROM {tool_usage_logs} l WHERE l.id = {usage_of_t} AND l.session_id = :run_id)
  ON CONFLICT DO NOTHING
),
suite_gone AS (
  DELETE FROM {ai_suites} s USING suite x
  WHERE s.id = x.id AND (:forced OR x.is_untouched AND NOT x.is_used) RETURNING 1
),
credit_gone AS (
  DELETE FROM {credit_logs} c USING credit x, decided d
  WHERE c.id = x.id AND d.id = x.user_id AND d.restores_credits_balance
  RETURNING CASE WHEN c.reason = 'migration_grant' THEN c.amount END AS granted
),
restored AS (
  UPDATE {users} u SET {assignments}
  FROM decided d WHERE u.id = d.id AND ({restores_any})
),
forgotten AS (
  DELETE FROM migration.before_images b USING page p
  WHERE b.entity = 'user' AND b.legacy_key = p.legacy_key AND b.run_id = :run_id
    AND NOT EXISTS (SELECT FROM changed c WHERE c.legacy_key = p.legacy_key)
    AND NOT EXISTS (SELECT FROM suite s WHERE s.legacy_key = p.legacy_key
      AND NOT :forced AND (s.is_used OR NOT s.is_untouched))
)
SELECT -(SELECT count(*) FROM suite_gone) AS ai_suites,
  -(SELECT coalesce(sum(granted), 0) FROM credit_gone) AS credits_granted
"""
_UNDO_USERS = _DECIDED + _RESTORED

# Where the run wrote a column, by its own notes, and whether it is still as the run wrote it.
_WRITTEN = {
    "user_type": ("NOT p.kept ? 'user_type'", "p.user_type::text = p.was ->> 'type'"),
    "billing_tier": ("NOT p.kept ? 'billing_tier'", "p.billing_tier::text = 'free'"),
    "is_active": ("NOT p.kept ? 'is_active'", "p.is_active"),
    "organization_id": (
        "NOT p.kept ? 'organization_id'",
        "p.organization_id IN (h.organization_id, {organization})",
    ),
    "department_id": (
        "NOT p.kept ? 'organization_id' AND NOT p.was ? 'department_id'",
        "p.department_id IN (h.department_id, {department})",
    ),
    # The logs go with the balance, and stay with it.
    "credits_balance": (
        "p.grant_id IS NOT NULL",
        "p.credits_balance = p.balance_before + p.amount"
        " AND p.balance_after = p.credits_balance AND p.are_logs_untouched",
    ),
}


class UndoUsers(Step):
    """Takes away tools, suites and credits that the run gave to users, and what it wrote there."""

    name = "undo_users"
    stage = "undo_users"
    queue = "migration.users"
    source = USERS
    entity = "user"

    def prepare(self, context: Context, scope: Scope) -> Counts:
        lock_rows(context, context.sources.users, scope)
        return {}

    def apply(self, context: Context, scope: Scope) -> Counts:
        names = _expressions(context, scope)
        for lock in (_LOCK_SUITES, _LOCK_TOOLS):
            context.execute(lock, scope, **names)
        found: Counts = {"rows": dict(context.execute(_UNDO_TOOLS, scope, **names).one()._mapping)}
        if context.forced:
            found = add(found, remove_tools(context, _IN_DOOMED_SUITES, scope, **names))
        return add(found, counts(context.execute(_UNDO_USERS, scope, **names).one()))

    def quarantine(self, context: Context, entity: str, keys: Sequence[str], **why: Any) -> None:
        note_refused(context, "users", keys)


def _expressions(context: Context, scope: Scope) -> dict[str, str]:
    users, subscriptions = context.sources.users, context.sources.subscriptions
    user_key, key = users.columns["id"].base, subscriptions.columns["id"].base
    usage = (ids.SUBSCRIPTION_USAGE, ids.PROJECT_USAGE)
    return {
        **made.expressions(context),
        "note": NOTE,
        "scope": scope.condition("u.id", user_key),
        "suites_scope": owned(context, context.target.table("ai_suites"), "s", scope),
        "usage_scope": owned(context, context.target.table("tool_usage_logs"), "l", scope),
        "logs_scope": owned(context, context.target.table("credit_logs"), "c", scope),
        "is_usage": " OR ".join(ids.has_kind(context.sources, kind, "l.id") for kind in usage),
        "is_subscription_tool": ids.has_kind(context.sources, ids.SUBSCRIPTION_TOOL, "t.id"),
        "subscription_tool": ids.id_of(context.sources, ids.SUBSCRIPTION_TOOL, "s.id", key),
        "usage_of_tool": ids.usage_of(context.sources, "l.tool_id"),
        "usage_of_t": ids.usage_of(context.sources, "t.id"),
        "suite_id": ids.id_of(context.sources, ids.SUITE, "u.id", user_key),
        "suite_id_of_page": ids.id_of(context.sources, ids.SUITE, "p.id", user_key),
        **_columns(context),
    }


def _columns(context: Context) -> dict[str, str]:
    """What is decided for each column: it goes back where it still is as the run wrote it."""
    users, made = context.sources.users, _made(context)
    decisions, changes, assignments = [], [], []
    for name, (is_set, is_as_written) in _WRITTEN.items():
        column = quote(name)
        before = f"CAST(p.was ->> '{name}' AS {users.columns[name].type})"
        differs = f"({is_set}) AND p.{column} IS DISTINCT FROM {before}"
        if name == "credits_balance":
            # A grant of nothing leaves a log behind, too.
            differs = is_set
        may = f"(:forced OR ({is_as_written.format(**made)}) IS TRUE)"
        decisions += [
            f"{before} AS before_{name}",
            f"{differs} AND {may} AS restores_{name}",
            f"{differs} AND NOT {may} AS keeps_{name}",
        ]
        changes.append(
            f"SELECT d.legacy_key, '{name}' AS detail FROM decided d WHERE d.keeps_{name}"
        )
        assignments.append(
            f"{column} = CASE WHEN d.restores_{name} THEN d.before_{name} ELSE u.{column} END"
        )
    return {
        "columns": ", ".join(f"u.{quote(name)}" for name in _WRITTEN),
        "decisions": ",\n    ".join(decisions),
        "changes": "\n  UNION ALL ".join(changes),
        "assignments": ",\n    ".join(assignments),
        "restores_any": " OR ".join(f"d.restores_{name}" for name in _WRITTEN),
    }


def _made(context: Context) -> dict[str, str]:
    """The ids of the organization and the department that the migration makes."""
    sources = context.sources
    return {"organization": ids.organization(sources), "department": ids.department(sources)}
