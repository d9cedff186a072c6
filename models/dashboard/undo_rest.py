"""What a rollback takes away beyond pages: rows of users who are gone, and the organization."""

from __future__ import annotations

from models.dashboard import ids, made
from models.dashboard.tools import remove_tools
from models.engine.rollback import NOTE
from models.engine.step import Context, Counts, Scope

# Users who are gone: where foreign keys stand, nothing of theirs is left.
_GONE_TOOLS = """
  SELECT l.tool_id AS id, t.suite_id FROM {tool_usage_logs} l JOIN {ai_tools} t ON t.id = l.tool_id
  WHERE l.session_id = :run_id AND NOT EXISTS (SELECT FROM {users} u WHERE u.id = l.user_id)
"""
_GONE_REST = """
WITH usage_log AS (
  DELETE FROM {tool_usage_logs} l
  WHERE l.session_id = :run_id AND NOT EXISTS (SELECT FROM {users} u WHERE u.id = l.user_id)
  RETURNING 1
),
credit AS (
  DELETE FROM {credit_logs} c
  WHERE c.run_id = :run_id AND NOT EXISTS (SELECT FROM {users} u WHERE u.id = c.user_id)
  RETURNING CASE WHEN c.reason = 'migration_grant' THEN c.amount END AS granted
),
suite AS (
  DELETE FROM {ai_suites} s USING migration.before_images b
  WHERE b.run_id = :run_id AND b.entity = 'user' AND b.legacy_key = s.user_id::text
    AND NOT b.was ?| ARRAY['suite', 'had_suite']
    AND NOT EXISTS (SELECT FROM {users} u WHERE u.id = s.user_id)
    AND NOT EXISTS (SELECT FROM {ai_tools} t WHERE t.suite_id = s.id)
  RETURNING 1
)
SELECT -(SELECT count(*) FROM usage_log) AS tool_usage_logs,
  -(SELECT count(*) FROM suite) AS ai_suites,
  -(SELECT coalesce(sum(granted), 0) FROM credit) AS credits_granted
"""

# Only what this run created itself, by its own count.
_ORGANIZATION = """
WITH made AS (
  SELECT coalesce(sum((b.counts #>> '{{rows,organizations}}')::int), 0) > 0 AS organization,
    coalesce(sum((b.counts #>> '{{rows,departments}}')::int), 0) > 0 AS department
  FROM migration.batches b WHERE b.run_id = :run_id AND b.step = 'organization'
),
found AS MATERIALIZED (
  SELECT 'departments' AS table_name, d.id::text AS id,
    d.updated_at IS NOT DISTINCT FROM d.created_at AND d.name = {default_department}
      AS is_untouched,
    EXISTS (SELECT FROM {users} u WHERE u.department_id = d.id) AS is_used
  FROM {departments} d, made WHERE d.id = {department} AND made.department
  UNION ALL
  SELECT 'organizations', o.id::text, o.updated_at IS NOT DISTINCT FROM o.created_at
      AND o.name = {default_organization} AND o.credits_balance = 0,
    EXISTS (SELECT FROM {users} u WHERE u.organization_id = o.id)
      OR EXISTS (SELECT FROM {departments} d
                 WHERE d.organization_id = o.id AND d.id <> {department})
  FROM {organizations} o, made WHERE o.id = {organization} AND made.organization
),
noted AS (
  {note}
  SELECT :run_id, CASE WHEN f.is_untouched THEN 'held' ELSE 'changed' END, f.table_name, f.id, '',
    NULL
  FROM found f WHERE NOT :forced AND (f.is_used OR NOT f.is_untouched)
  ON CONFLICT DO NOTHING
),
doomed AS (SELECT f.* FROM found f WHERE :forced OR (f.is_untouched AND NOT f.is_used)),
department AS (
  DELETE FROM {departments} d USING doomed f
  WHERE f.table_name = 'departments' AND d.id::text = f.id RETURNING 1
),
organization AS (
  DELETE FROM {organizations} o USING doomed f
  WHERE f.table_name = 'organizations' AND o.id::text = f.id
    AND (:forced OR NOT EXISTS (
      SELECT FROM {departments} d WHERE d.organization_id = o.id
        AND d.id::text NOT IN (SELECT x.id FROM doomed x))) RETURNING 1
)
SELECT -(SELECT count(*) FROM organization) AS organizations,
  -(SELECT count(*) FROM department) AS departments
"""


def undo_rest(context: Context, scope: Scope) -> Counts:
    """Undo what no page of users or projects reaches; returns negative counts of rows."""
    removed = remove_tools(context, _GONE_TOOLS, scope)
    rest = context.execute(_GONE_REST, scope).one()
    names = {
        **made.expressions(context),
        "organization": ids.organization(context.sources),
        "department": ids.department(context.sources),
    }
    gone = context.execute(_ORGANIZATION, scope, note=NOTE, **names).one()
    rows = {"ai_suites": rest.ai_suites, "tool_usage_logs": rest.tool_usage_logs}
    for name, count in removed["rows"].items():
        rows[name] = rows.get(name, 0) + count
    return {"rows": rows | dict(gone._mapping), "credits_granted": str(rest.credits_granted)}
