"""Contract: foreign keys and defaults, then validation and NOT NULL; and the helper index goes.

Each table's keys are safe to repeat, and hold no lock beyond `lock_timeout`. Between
the two halves the cutover replays the last changes: from the first half on, the keys delete what
hangs on a row that the application deletes, and the second half finds nothing left over.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from itertools import count

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from models.engine.schema.declaration import Reference
from models.engine.schema.indexes import (
    alter,
    drop_helpers,
    ours,
    recorded,
)
from models.engine.source import SourceTable
from models.engine.step import Context, Counts, Scope, Step
from models.postgres.catalog import literal, quote
from models.postgres.database import sqlstate

_REST = "not null and the rest"
_NOT_NULL = "migration_not_null"
_CHECK_VIOLATION = "23514"
_FOREIGN_KEY_VIOLATION = "23503"


class Keys(Step):
    """Adds foreign keys, not validated yet, and the defaults of the new columns."""

    name = "keys"
    stage = "finish"
    queue = "migration.control"
    transactional = False

    def items(self, context: Context) -> list[str]:
        return ["keys and defaults"]

    def apply(self, context: Context, scope: Scope) -> Counts:
        added = recorded(context.connection)
        lacking = []
        for reference in context.migration.schema.references:
            of_table = ("table", reference.table, reference.table)
            of_column = ("column", reference.table, reference.column)
            is_there = context.target.table(reference.table).key_on(reference.column)
            if {of_table, of_column} & added and is_there is None:
                lacking.append(reference)
        _add_keys(context, lacking)
        _set_defaults(context)
        return {}


class Contract(Step):
    """Closes the schema, now that the rows are there and verified."""

    name = "contract"
    stage = "finish"
    queue = "migration.control"
    transactional = False
    takes_lists = True

    def items(self, context: Context) -> list[str]:
        references = context.migration.schema.references
        return [*dict.fromkeys(reference.table for reference in references), _REST]

    def key_lists(self, context: Context, round_: int) -> list[list[str]]:
        # NOT NULL needs a lock that conflicts with the validation of each key to that table.
        is_rest = {0: False, 1: True}
        return [[i] for i in self.items(context) if (i == _REST) is is_rest.get(round_)]

    def apply(self, context: Context, scope: Scope) -> Counts:
        (item,) = scope.keys or ()
        references = [r for r in context.migration.schema.references if r.table == item]
        for reference in references:
            _validate(context, reference)
        if not references:
            # The application has not been handed over: it may write rows without these columns.
            if not context.is_canary:
                _require_values(context)
            _drop_helper_indexes(context)
            allow_autovacuum(context)
        return {}


def _drop_helper_indexes(context: Context) -> None:
    for name, table in context.sources.by_plural.items():
        drop_helpers(context.connection, name, table.schema)


def allow_autovacuum(context: Context) -> None:
    """From now on the tables that the migration made are vacuumed like all others."""
    added = recorded(context.connection)
    tables = [name for name in context.migration.schema.tables if ("table", name, name) in added]
    resets = (
        f"ALTER TABLE {context.target.table(name).sql} RESET (autovacuum_enabled)"
        for name in tables
    )
    if tables:
        alter(context.connection, "; ".join(resets))


def _add_keys(context: Context, references: Sequence[Reference]) -> None:
    connection = context.connection
    tables = [context.target.table(reference.table) for reference in references]
    taken = _constraints(connection, [table.oid for table in tables])
    for reference, table in zip(references, tables, strict=True):
        name = _free(f"fk_{reference.table}_{reference.column}", taken[table.oid])
        alter(
            connection,
            f"ALTER TABLE {table.sql}"
            f" ADD CONSTRAINT {quote(name)} FOREIGN KEY ({quote(reference.column)})"
            f" REFERENCES {context.target.table(reference.refers_to).sql} (id)"
            f" ON DELETE {reference.on_delete} NOT VALID",
            added=[("constraint", reference.table, name)],
        )


def _constraints(connection: Connection, tables: Sequence[int]) -> dict[int, set[str]]:
    """The names of the constraints of each of these tables."""
    found: dict[int, set[str]] = {oid: set() for oid in tables}
    query = text("SELECT conrelid, conname FROM pg_constraint WHERE conrelid = ANY(:tables)")
    for oid, name in connection.execute(query, {"tables": list(found)}):
        found[oid].add(name)
    return found


def _free(name: str, taken: Container[str]) -> str:
    """The name, or one like it where the table has another constraint under that."""
    names = (f"{name}_{number}" if number else name for number in count())
    return next(candidate for candidate in names if candidate not in taken)


def _validate(context: Context, reference: Reference) -> None:
    table = context.target.table(reference.table)
    key = table.key_on(reference.column)
    if key is None or key.valid:
        return
    validate = f"ALTER TABLE {table.sql} VALIDATE CONSTRAINT {quote(key.name)}"
    try:
        alter(context.connection, validate)
    except DBAPIError as failure:
        if sqlstate(failure) != _FOREIGN_KEY_VIOLATION:
            raise
        _remove_orphans(context, reference)
        alter(context.connection, validate)


def _remove_orphans(context: Context, reference: Reference) -> None:
    """What the key would have done itself, had it stood when the application deleted the row."""
    column = quote(reference.column)
    orphan = (
        f"t.{column} IS NOT NULL AND NOT EXISTS (SELECT FROM"
        f" {context.target.table(reference.refers_to).sql} r WHERE r.id = t.{column})"
    )
    table = context.target.table(reference.table).sql
    if reference.on_delete == "CASCADE":
        context.connection.exec_driver_sql(f"DELETE FROM {table} t WHERE {orphan}")
    else:
        context.connection.exec_driver_sql(f"UPDATE {table} t SET {column} = NULL WHERE {orphan}")


def _set_defaults(context: Context) -> None:
    connection = context.connection
    for name, defaults in context.migration.schema.defaults.items():
        table = context.sources.by_plural[name]
        missing = [column for column in defaults if table.columns[column].default is None]
        if missing:
            clauses = ", ".join(
                f"ALTER COLUMN {quote(column)} SET DEFAULT {defaults[column]}" for column in missing
            )
            added = [("default", name, column) for column in missing]
            alter(connection, f"ALTER TABLE {table.sql} {clauses}", added=added)


def _require_values(context: Context) -> None:
    """NOT NULL for columns with a default, where no row of the table is quarantined."""
    for name, defaults in context.migration.schema.defaults.items():
        table = context.sources.by_plural[name]
        any_quarantined = context.connection.scalar(
            text(
                "SELECT true FROM migration.quarantine"
                " WHERE entity = :entity AND state IN ('open', 'accepted') LIMIT 1"
            ),
            {"entity": table.source.entity},
        )
        drop_left_checks(context.connection, table)
        nullable = [column for column in defaults if not table.columns[column].not_null]
        if nullable and not any_quarantined:
            _set_not_null(context.connection, table, nullable)


def drop_left_checks(connection: Connection, table: SourceTable) -> None:
    """Drop what an interrupted NOT NULL left; a constraint of somebody else's stays."""
    label = table.source.plural
    names = [name for name in ours(connection, "constraint", label) if name.startswith(_NOT_NULL)]
    if names:
        alter(connection, "; ".join(_drop_check(table, name) for name in names))


def _drop_check(table: SourceTable, name: str) -> str:
    """Statements: the name is free for somebody else then."""
    return (
        f"ALTER TABLE {table.sql} DROP CONSTRAINT IF EXISTS {quote(name)};"
        " DELETE FROM migration.schema_objects WHERE kind = 'constraint'"
        f" AND table_name = {literal(table.source.plural)} AND name = {literal(name)}"
    )


def _set_not_null(connection: Connection, table: SourceTable, columns: list[str]) -> None:
    """With a validated CHECK in place, SET NOT NULL needs no scan under its lock (PG 12 on)."""
    label = table.source.plural
    name = _free(_NOT_NULL, _constraints(connection, [table.oid])[table.oid])
    check, drop = quote(name), _drop_check(table, name)
    condition = " AND ".join(f"{quote(name)} IS NOT NULL" for name in columns)
    add = f"ALTER TABLE {table.sql} ADD CONSTRAINT {check} CHECK ({condition}) NOT VALID"
    alter(connection, add, added=[("constraint", label, name)])
    try:
        alter(connection, f"ALTER TABLE {table.sql} VALIDATE CONSTRAINT {check}")
    except DBAPIError as failure:
        if sqlstate(failure) != _CHECK_VIOLATION:
            raise
        # A row that came after the pages were cut, without these columns: the next run takes it.
        alter(connection, drop)
        return
    clauses = ", ".join(f"ALTER COLUMN {quote(name)} SET NOT NULL" for name in columns)
    added = [("not_null", label, column) for column in columns]
    alter(connection, f"ALTER TABLE {table.sql} {clauses}; {drop}", added=added)
