"""Undoing a run: the schema is loosened first, then the steps are undone, then what is left over.

A *conflict* is a column that the run wrote and somebody changed since, a created row that was
changed, or somebody's row that hangs on a created one: it is noted and kept, with the created rows
that it needs, unless the rollback is forced. No other column or row is touched.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

from models.engine.live.capture import Release
from models.engine.schema.constraints import allow_autovacuum, drop_left_checks
from models.engine.schema.indexes import EarlyIndexes, TargetIndexes, alter, drop_helpers, is_ours
from models.engine.source import SourceTable
from models.engine.step import Context, Counts, Scope, Step
from models.postgres.catalog import quote

# The rows of a page are locked before the statements take their snapshots: what those find
# unchanged stays so until the commit. Waits in key order.
_LOCK = """
SELECT count(*) FROM (
  SELECT FROM {table} t WHERE {scope} ORDER BY {key} FOR NO KEY UPDATE) AS locked
"""
NOTE = "INSERT INTO migration.conflicts (run_id, kind, table_name, row_key, detail, holds)"

_REFUSED = text(
    f"{NOTE} SELECT :run_id, 'refused', :table, key, '', NULL"
    " FROM unnest(CAST(:keys AS text[])) AS key ON CONFLICT DO NOTHING"
)

# A conflict keeps its image, for a rollback by force; a row that is gone needs none.
_FORGET = """
DELETE FROM migration.before_images b WHERE b.run_id = :run_id AND b.entity = '{entity}'
  AND NOT EXISTS (SELECT FROM {table} t WHERE {key}::text = b.legacy_key)
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


def lock_rows(context: Context, table: SourceTable, scope: Scope) -> None:
    """Lock the source rows of a page until the commit."""
    lock = _LOCK.format(table=table.sql, scope=scope.of(table), key=table.key_of("t"))
    context.connection.execute(text(lock), scope.parameters)


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
    """What no page reaches: the migration's own rest, and the findings of the run."""

    name = "undo_rest"
    stage = "undo_rest"
    queue = "migration.control"

    def items(self, context: Context) -> list[str]:
        return ["rest"]

    def apply(self, context: Context, scope: Scope) -> Counts:
        # May read a table once from end to end, however large it is.
        context.connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        counts = context.migration.undo_rest(context, scope)
        for entity, table in context.sources.items():
            forget = _FORGET.format(entity=entity, table=table.sql, key=table.key_of("t"))
            context.connection.execute(text(forget), {"run_id": context.run_id})
        forget_findings(context.connection, context.run_id)
        return counts


class Tidy(Step):
    """Drops the indexes that were built for the run or its undo only, and lets vacuum in again."""

    name = "tidy"
    stage = "undo_rest"
    queue = "migration.control"
    transactional = False

    def items(self, context: Context) -> list[str]:
        return [*context.sources.by_plural, "autovacuum"]

    def apply(self, context: Context, scope: Scope) -> Counts:
        (name,) = scope.keys or ()
        if name == "autovacuum":
            allow_autovacuum(context)
        else:
            drop_helpers(context.connection, name, context.sources.by_plural[name].schema)
        return {}


def _drop_not_null(context: Context) -> None:
    """Nulls come back; and where no other run stands, so does a table without our defaults."""
    connection = context.connection
    others = connection.scalar(
        text(
            "SELECT EXISTS (SELECT FROM migration.runs r"
            " WHERE r.id <> :run_id AND r.state <> 'rolled_back')"
        ),
        {"run_id": context.run_id},
    )
    kinds = {"not_null": "DROP NOT NULL"} | ({} if others else {"default": "DROP DEFAULT"})
    for name, defaults in context.migration.schema.defaults.items():
        drop_left_checks(connection, context.sources.by_plural[name])
        clauses = [
            f"ALTER COLUMN {quote(column)} {clause}"
            for kind, clause in kinds.items()
            for column in defaults
            if is_ours(connection, kind, name, column)
        ]
        if clauses:
            table = context.sources.by_plural[name].sql
            alter(connection, f"ALTER TABLE {table} {', '.join(clauses)}")
