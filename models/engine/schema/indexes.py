"""Indexes: the one the run itself needs before the load, the ones of the target after it.

Building an index once, over rows that are there, costs a fraction of keeping it during the load.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

from models.engine.step import Context, Counts, Scope, Step
from models.postgres.catalog import Table, literal, quote
from models.postgres.database import LOCK_TIMEOUT_MS, retry_locks
from models.preflight.taken import index_names

HELPER = "migration_helper"
# PostgreSQL cuts longer names off (NAMEDATALEN).
LONGEST_NAME = 63

_RECORD = (
    "INSERT INTO migration.schema_objects (kind, table_name, name) {added} ON CONFLICT DO NOTHING"
)
_MANY = (
    "SELECT * FROM unnest(CAST(:kinds AS text[]), CAST(:tables AS text[]), CAST(:names AS text[]))"
)


def record(connection: Connection, added: Sequence[tuple[str, str, str]]) -> None:
    """Remember that the migration added these objects (kind, table, name).

    Only those may be taken away again.
    """
    kinds, tables, names = ([each[part] for each in added] for part in range(3))
    values = {"kinds": kinds, "tables": tables, "names": names}
    connection.execute(text(_RECORD.format(added=_MANY)), values)


def is_ours(connection: Connection, kind: str, table: str, name: str) -> bool:
    """Whether the migration added this object itself."""
    found = connection.scalar(
        text(
            "SELECT true FROM migration.schema_objects"
            " WHERE kind = :kind AND table_name = :table_name AND name = :name"
        ),
        {"kind": kind, "table_name": table, "name": name},
    )
    return bool(found)


def recorded(connection: Connection) -> set[tuple[str, str, str]]:
    """All objects (kind, table, name) that the migration added."""
    found = connection.execute(text("SELECT kind, table_name, name FROM migration.schema_objects"))
    return {(row.kind, row.table_name, row.name) for row in found}


def ours(connection: Connection, kind: str, table: str) -> list[str]:
    """The objects of that kind that the migration added to the table, by name."""
    return list(
        connection.scalars(
            text(
                "SELECT name FROM migration.schema_objects"
                " WHERE kind = :kind AND table_name = :table_name ORDER BY name"
            ),
            {"kind": kind, "table_name": table},
        )
    )


def alter(
    connection: Connection, statements: str, *, added: Sequence[tuple[str, str, str]] = ()
) -> None:
    """Run an ALTER or plain CREATE INDEX with a short lock timeout, until it gets its lock.

    The connection is in autocommit: the limit and the statements travel as one transaction. So do
    the records of the objects (kind, table, name) that they add.
    """
    limits = f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"
    if _is_alone(connection):
        limits += "; SET LOCAL statement_timeout = 0"
    if added:
        rows = (f"({', '.join(map(literal, each))})" for each in added)
        limits += "; " + _RECORD.format(added=f"VALUES {', '.join(rows)}")
    retry_locks(lambda: connection.exec_driver_sql(f"{limits}; {statements}"))


def build(
    connection: Connection, table: Table, record_as: tuple[str, str], name: str, column: str
) -> None:
    """Build an index on the column under the name, or under another where somebody has that.

    Without blocking writes, but for a table that the migration made; what an interruption left
    invalid goes first.
    """
    kind, label = record_as
    for free, is_invalid in index_names(connection, table.schema, table.oid, name, column):
        if is_invalid and not is_ours(connection, kind, label, free):
            continue
        if is_invalid:
            drop_concurrently(connection, table.schema, free)
        target = f"IF NOT EXISTS {quote(free)} ON {table.sql} ({quote(column)})"
        if is_ours(connection, "table", label, label):
            alter(connection, f"CREATE INDEX {target}", added=[(kind, label, free)])
        else:
            record(connection, [(kind, label, free)])
            connection.exec_driver_sql(f"CREATE INDEX {_concurrently(connection)} {target}")
        return


def drop_helpers(connection: Connection, name: str, schema: str) -> None:
    """Drop the helper indexes that the migration built on this legacy table."""
    for index in ours(connection, "helper_index", name):
        drop_concurrently(connection, schema, index)


def drop_concurrently(connection: Connection, schema: str, name: str) -> None:
    """Drop an index without blocking; nothing happens where it is gone."""
    connection.exec_driver_sql(
        f"DROP INDEX {_concurrently(connection)} IF EXISTS {quote(schema)}.{quote(name)}"
    )


def _concurrently(connection: Connection) -> str:
    return "CONCURRENTLY" if _is_alone(connection) else ""


def _is_alone(connection: Connection) -> bool:
    """Everywhere but in a rehearsal, which is one transaction over tables of its own."""
    return connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT"


class EarlyIndexes(Step):
    """Builds the indexes that every batch needs, where the application has none."""

    name = "early_indexes"
    stage = "organization"
    queue = "migration.control"
    transactional = False

    def items(self, context: Context) -> list[str]:
        wanted = {
            name: (table, table.source.parent_column)
            for name, table in context.sources.by_plural.items()
            if table.source.parent
        } | {
            name: (context.target.table(name), column)
            for name, column in context.migration.schema.early_indexes
        }
        return [name for name, (table, column) in wanted.items() if not table.has_index_on(column)]

    def apply(self, context: Context, scope: Scope) -> Counts:
        connection = context.connection
        (name,) = scope.keys or ()
        child = context.sources.by_plural.get(name)
        if child is not None:
            column = child.source.parent_column
            index = f"{HELPER}_{name}_{column}"[:LONGEST_NAME]
            build(connection, child, ("helper_index", name), index, column)
        else:
            column = dict(context.migration.schema.early_indexes)[name]
            table = context.target.table(name)
            build(connection, table, ("index", name), f"ix_{name}_{column}", column)
        return {"indexes": 1}


class TargetIndexes(Step):
    """Builds the indexes that foreign keys need, table by table, and refreshes statistics."""

    name = "indexes"
    queue = "migration.control"
    transactional = False

    def items(self, context: Context) -> list[str]:
        return list(dict.fromkeys(r.table for r in context.migration.schema.references))

    def apply(self, context: Context, scope: Scope) -> Counts:
        connection = context.connection
        (name,) = scope.keys or ()
        table = context.target.table(name)
        built = 0
        columns = [r.column for r in context.migration.schema.references if r.table == name]
        for column in columns:
            if table.has_index_on(column):
                continue
            build(connection, table, ("index", name), f"ix_{name}_{column}", column)
            built += 1
        # Of the keys only, and a small sample: more costs as much as an index. The server does the
        # rest soon, since this does not count for it as an ANALYZE.
        keys = [name for name in dict.fromkeys(("id", *columns)) if name in table.columns]
        analyze = f"ANALYZE {table.sql} ({', '.join(map(quote, keys))})"
        connection.exec_driver_sql(f"SET LOCAL default_statistics_target = 30; {analyze}")
        return {"indexes": built}
