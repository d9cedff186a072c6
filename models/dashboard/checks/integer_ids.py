"""What must hold where target tables have integer ids, so that each id follows from its key."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, text

from models.dashboard import ids
from models.dashboard.projects.choice import names_subscriptions
from models.dashboard.schema import REFERENCES
from models.engine.schema.target import Target
from models.engine.source import Sources, SourceTable
from models.errors import Incompatible, MigrationError
from models.postgres.catalog import INTEGER_TYPES, Table

# The sources whose keys the ids of a table follow from, with a kind of id each.
_KEYS = {
    "ai_suites": (("users", ids.SUITE),),
    "ai_tools": (("subscriptions", ids.SUBSCRIPTION_TOOL), ("projects", ids.PROJECT_TOOL)),
    "tool_usage_logs": (
        ("subscriptions", ids.SUBSCRIPTION_USAGE),
        ("projects", ids.PROJECT_USAGE),
    ),
    "credit_logs": (("users", ids.GRANT), ("users", ids.OPENING)),
}
# The sequence of an identity, or that the default of the id takes its values from, wherever that
# came from.
_SEQUENCE = text("""
SELECT q.schemaname || '.' || q.sequencename AS name, q.last_value
FROM (
  SELECT p.refobjid AS oid FROM pg_attrdef d
  JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum AND a.attname = 'id'
  JOIN pg_depend p ON p.classid = 'pg_attrdef'::regclass AND p.objid = d.oid
    AND p.refclassid = 'pg_class'::regclass
  WHERE d.adrelid = :table
  UNION SELECT p.objid FROM pg_depend p
  JOIN pg_attribute a ON a.attrelid = p.refobjid AND a.attnum = p.refobjsubid AND a.attname = 'id'
  WHERE p.classid = 'pg_class'::regclass AND p.refclassid = 'pg_class'::regclass
    AND p.refobjid = :table AND p.deptype = 'i'
) AS used
JOIN pg_class c ON c.oid = used.oid AND c.relkind = 'S'
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_sequences q ON q.schemaname = n.nspname AND q.sequencename = c.relname
""")


def examine(connection: Connection, sources: Sources, target: Target) -> Iterator[MigrationError]:
    """Every key, sequence, row and column that integer ids do not go with."""
    for name, table in target.tables.items():
        found = ids.integers(sources, name)
        if found is None or isinstance(table, SourceTable) or table.kind not in ("r", "p"):
            continue
        yield from _sequence(connection, table, found.first)
        yield from _rows(connection, table, found.first)
        for plural, kind in _KEYS.get(name, ()):
            source = getattr(sources, plural)
            is_named = plural == "subscriptions" and names_subscriptions(sources)
            yield from _source(connection, source, table, found, kind, is_named=is_named)
    yield from _pairs(sources, target)
    yield from _references(sources, target)


def _sequence(connection: Connection, table: Table, first: int) -> Iterator[MigrationError]:
    for name, last in connection.execute(_SEQUENCE, {"table": table.oid}):
        if last is not None and last >= first:
            yield _beyond(f"The sequence {name} of {table.label}.id is at {last}", last, first)


def _rows(connection: Connection, table: Table, first: int) -> Iterator[MigrationError]:
    """A row beyond the first id that is there before any run is not the migration's."""
    if connection.scalar(text("SELECT to_regclass('migration.runs')")):
        return
    largest = connection.scalar(text(f"SELECT max(t.id) FROM {table.sql} t"))
    if largest is not None and largest >= first:
        yield _beyond(f"{table.label} has a row with the id {largest}", largest, first)


def _beyond(what: str, number: int, first: int) -> Incompatible:
    return Incompatible(
        f"{what}, beyond the first id of the migration, {first}",
        hint=f"In the mapping: [ids] first = a number beyond {number}, with room for twice the"
        " largest key.",
    )


def _source(
    connection: Connection,
    source: SourceTable,
    table: Table,
    found: ids.Integers,
    kind: str,
    *,
    is_named: bool,
) -> Iterator[MigrationError]:
    key = source.key
    if key.base not in INTEGER_TYPES:
        yield Incompatible(
            f"{table.label}.id is {found.type}, but {source.label}.{key.name} is {key.type}: an"
            " integer id follows from an integer key only",
            hint="Rename the table that is in the way, or give it ids of text.",
        )
        return
    sql = f"SELECT min({source.key_of('t')}), max({source.key_of('t')}) FROM {source.sql} t"
    least, most = connection.execute(text(sql)).one()
    if least is not None and least < 0:
        yield Incompatible(
            f"{source.label}.{key.name} holds negative keys ({least}), and an integer id of"
            f" {table.label} follows from keys of 0 and more only",
            hint="Give these rows other keys.",
        )
    if most is not None and is_named and most >= found.first:
        yield Incompatible(
            f"{source.label}.{key.name} holds {most}, beyond the first id of the migration,"
            f" {found.first}: a project that names a subscription could name a tool as well",
            hint=f"In the mapping: [ids] first = a number beyond {most} and every sequence.",
        )
    if most is not None and most > found.most(kind):
        yield Incompatible(
            f"{source.label}.{key.name} holds {most}, too large for an id of {table.label}: keys up"
            f" to {found.most(kind)} have one, from the first id {found.first} on",
            hint="In the mapping: [ids] first = a smaller number, beyond every sequence; or make"
            f" {table.label}.id a bigint.",
        )


def _pairs(sources: Sources, target: Target) -> Iterator[MigrationError]:
    """A usage log's id follows from that of its tool."""
    tools, logs = (target.tables.get(name) for name in ("ai_tools", "tool_usage_logs"))
    if not tools or not logs or "id" not in tools.columns or "id" not in logs.columns:
        return
    are_integers = [bool(ids.integers(sources, name)) for name in ("ai_tools", "tool_usage_logs")]
    if are_integers[0] != are_integers[1]:
        yield Incompatible(
            f"{logs.label}.id: expected an integer or a text as {tools.label}.id is"
            f" ({tools.columns['id'].type}), found {logs.columns['id'].type}",
            hint="Rename the table that is in the way, or give both ids one type.",
        )


def _references(sources: Sources, target: Target) -> Iterator[MigrationError]:
    """A column that points at an integer id must hold as much."""
    for each in REFERENCES:
        found = ids.integers(sources, each.refers_to)
        table = target.tables.get(each.table)
        column = table.columns.get(each.column) if table else None
        if column is None or table is None:
            continue
        if found and found.type == "bigint" and column.base == "integer":
            yield Incompatible(
                f"{table.label}.{column.name}: expected bigint, as the id of {each.refers_to} is,"
                " found integer",
                hint=f"ALTER TABLE {table.label} ALTER {column.name} TYPE bigint",
            )
