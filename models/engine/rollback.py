"""Undoing a run: the schema is loosened first, then come projects, users, and what is left over.

A *conflict* is a column that the run wrote and somebody changed since, a created row that was
changed, or somebody's row that hangs on a created one: it is noted and kept, with the created rows
that it needs, unless the rollback is forced. No other column or row is touched.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

from models.dashboard.schema import USER_DEFAULTS
from models.dashboard.tools import remove_tools
from models.engine.capture import Release
from models.engine.constraints import allow_autovacuum
from models.engine.indexes import (
    HELPER_INDEXES,
    EarlyIndexes,
    TargetIndexes,
    alter,
    drop_helpers,
    is_ours,
)
from models.engine.step import Context, Counts, Scope, Step
from models.postgres.catalog import quote

# The rows of a page are locked before the statements take their snapshots: what those find
# unchanged stays so until the commit. Waits in key order.
LOCK = """
SELECT count(*) FROM (
  SELECT FROM {table} u WHERE {scope} ORDER BY u.id FOR NO KEY UPDATE) AS locked
"""
NOTE = "INSERT INTO migration.conflicts (run_id, kind, table_name, row_key, detail, holds)"

_REFUSED = text(
    f"{NOTE} SELECT :run_id, 'refused', :table, key, '', NULL"
    " FROM unnest(CAST(:keys AS text[])) AS key ON CONFLICT DO NOTHING"
)

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

# A conflict keeps its image, for a rollback by force; a row that is gone needs none.
_FORGET = """
DELETE FROM migration.before_images b WHERE b.run_id = :run_id AND (
  b.entity = 'user' AND NOT EXISTS (SELECT FROM {users} u WHERE u.id::text = b.legacy_key)
  OR b.entity = 'project'
    AND NOT EXISTS (SELECT FROM {projects} p WHERE p.id::text = b.legacy_key))
"""
# The rows that it quarantined belong to the run before it.
_FORGET_FINDINGS = text("""
DELETE FROM migration.differences d WHERE d.run_id = :run_id;
UPDATE migration.quarantine q SET run_id = earlier.id
FROM (SELECT max(r.id) AS id FROM migration.runs r
      WHERE r.id < :run_id AND r.state <> 'rolled_back') AS earlier
WHERE q.run_id = :run_id AND earlier.id IS NOT NULL;
DELETE FROM migration.quarantine q WHERE q.run_id = :run_id
""")

# Only what this run created itself, by its own count.
_ORGANIZATION = """
WITH made AS (
  SELECT coalesce(sum((b.counts #>> '{{rows,organizations}}')::int), 0) > 0 AS organization,
    coalesce(sum((b.counts #>> '{{rows,departments}}')::int), 0) > 0 AS department
  FROM migration.batches b WHERE b.run_id = :run_id AND b.step = 'organization'
),
found AS MATERIALIZED (
  SELECT 'departments' AS table_name, d.id, d.updated_at IS NOT DISTINCT FROM d.created_at
      AND d.name = 'General' AS is_untouched,
    EXISTS (SELECT FROM {users} u WHERE u.department_id = d.id) AS is_used
  FROM {departments} d, made WHERE d.id = 'default-department' AND made.department
  UNION ALL
  SELECT 'organizations', o.id, o.updated_at IS NOT DISTINCT FROM o.created_at
      AND o.name = 'Default Organization' AND o.credits_balance = 0,
    EXISTS (SELECT FROM {users} u WHERE u.organization_id = o.id)
      OR EXISTS (SELECT FROM {departments} d
                 WHERE d.organization_id = o.id AND d.id <> 'default-department')
  FROM {organizations} o, made WHERE o.id = 'default-organization' AND made.organization
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
  WHERE f.table_name = 'departments' AND d.id = f.id RETURNING 1
),
organization AS (
  DELETE FROM {organizations} o USING doomed f
  WHERE f.table_name = 'organizations' AND o.id = f.id
    AND (:forced OR NOT EXISTS (
      SELECT FROM {departments} d WHERE d.organization_id = o.id
        AND d.id NOT IN (SELECT x.id FROM doomed x))) RETURNING 1
)
SELECT -(SELECT count(*) FROM organization) AS organizations,
  -(SELECT count(*) FROM department) AS departments
"""


def note_refused(context: Context, table: str, keys: Sequence[str]) -> None:
    """The database does not take the values of before: they are kept as they are, and listed."""
    context.connection.execute(
        _REFUSED, {"run_id": context.run_id, "table": table, "keys": list(keys)}
    )


def forget_findings(connection: Connection, run_id: str) -> None:
    """Drop a run's differences, and its quarantine where no earlier run takes that over."""
    connection.execute(_FORGET_FINDINGS, {"run_id": run_id})


class Loosen(Step):
    """Takes back what would refuse the values of before, and builds the indexes of the undo."""

    name = "loosen"
    stage = "loosen"
    queue = "migration.control"
    transactional = False

    def items(self, context: Context) -> list[str]:
        indexes = [f"index {name}" for name in EarlyIndexes().items(context)]
        targets = [f"indexes {name}" for name in TargetIndexes().items(context)]
        return ["not null", "triggers", *indexes, *targets]

    def apply(self, context: Context, scope: Scope) -> Counts:
        (item,) = scope.keys or ()
        what, _, name = item.partition(" ")
        if item == "not null":
            _drop_not_null(context)
        elif item == "triggers":
            release = Release()
            release.apply(context, scope.only(release.items(context)))
        elif what == "index":
            EarlyIndexes().apply(context, scope.only([name]))
        else:
            TargetIndexes().apply(context, scope.only([name]))
        return {}


class UndoRest(Step):
    """What no page reaches: rows of users who are gone, the organization, the quarantine."""

    name = "undo_rest"
    stage = "undo_rest"
    queue = "migration.control"

    def items(self, context: Context) -> list[str]:
        return ["rest"]

    def apply(self, context: Context, scope: Scope) -> Counts:
        # Reads the usage logs once from end to end, however many there are.
        context.connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        removed = remove_tools(context, _GONE_TOOLS, scope)
        rest = context.execute(_GONE_REST, scope).one()
        made = context.execute(_ORGANIZATION, scope, note=NOTE).one()
        context.execute(_FORGET, scope)
        forget_findings(context.connection, context.run_id)
        rows = {"ai_suites": rest.ai_suites, "tool_usage_logs": rest.tool_usage_logs}
        for name, count in removed["rows"].items():
            rows[name] = rows.get(name, 0) + count
        return {
            "rows": rows | dict(made._mapping),
            "credits_granted": str(rest.credits_granted),
        }


class Tidy(Step):
    """Drops the indexes that were built for the run or its undo only, and lets vacuum in again."""

    name = "tidy"
    stage = "undo_rest"
    queue = "migration.control"
    transactional = False

    def items(self, context: Context) -> list[str]:
        return [*HELPER_INDEXES, "autovacuum"]

    def apply(self, context: Context, scope: Scope) -> Counts:
        (name,) = scope.keys or ()
        if name == "autovacuum":
            allow_autovacuum(context)
        else:
            drop_helpers(context.connection, name, getattr(context.legacy, name).schema)
        return {}


def _drop_not_null(context: Context) -> None:
    """Nulls come back; and where no other run stands, so does a table without our defaults."""
    connection, users = context.connection, context.legacy.users
    others = connection.scalar(
        text(
            "SELECT EXISTS (SELECT FROM migration.runs r"
            " WHERE r.id <> :run_id AND r.state <> 'rolled_back')"
        ),
        {"run_id": context.run_id},
    )
    kinds = {"not_null": "DROP NOT NULL"} | ({} if others else {"default": "DROP DEFAULT"})
    clauses = [
        f"ALTER COLUMN {quote(name)} {clause}"
        for kind, clause in kinds.items()
        for name in USER_DEFAULTS
        if is_ours(connection, kind, "users", name)
    ]
    if clauses:
        alter(connection, f"ALTER TABLE {users.sql} {', '.join(clauses)}")
