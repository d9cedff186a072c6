"""What adopted tables lack: columns with a constant default, defaults for required columns.

Both change no row that is there: since PostgreSQL 11 a column with a constant default is added
without a rewrite. Each is recorded, and `schema downgrade` takes it away again.
"""

from __future__ import annotations

from collections.abc import Iterator

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from models.engine.schema.declaration import Schema
from models.engine.schema.shape import Shape
from models.errors import Incompatible, MigrationError, Misconfigured
from models.postgres.catalog import INTEGER_TYPES, Column, Table, literal, quote

NOW = "now()"


def lacking(schema: Schema, declared: sa.Table, found: Table) -> list[sa.Column[object]]:
    """The declared columns that an adopted table lacks and a run needs."""
    needed = {each.column for each in schema.references if each.table == declared.name}
    is_filled = declared.name not in schema.never_filled
    return [
        column
        for column in declared.columns
        if column.name not in found.columns
        and (is_filled or column.primary_key or column.name in needed)
    ]


def can_be_added(schema: Schema, declared: sa.Table, column: sa.Column[object]) -> bool:
    """Whether rows that are there may have the column's default, or null: no key, no reference."""
    is_reference = any(
        (each.table, each.column) == (declared.name, column.name) for each in schema.references
    )
    has_value = bool(column.nullable) or column.name in schema.added.get(declared.name, {})
    return has_value and not column.primary_key and not is_reference


def clause(
    connection: Connection, schema: Schema, declared: sa.Table, column: sa.Column[object]
) -> str:
    """The clause that adds a column: nullable, with its constant default where it has one."""
    given = column.server_default
    default = schema.added.get(declared.name, {}).get(column.name)
    if default is None and isinstance(given, sa.DefaultClause):
        # As in CREATE TABLE: a Python string is a value, only sa.text() is SQL.
        default = literal(given.arg) if isinstance(given.arg, str) else str(given.arg)
    kind = column.type.compile(connection.dialect)
    return f"ADD COLUMN {quote(column.name)} {kind}" + (f" DEFAULT {default}" if default else "")


def unset(shape: Shape, name: str, found: Table) -> list[tuple[str, str]]:
    """The columns of a table that get a default from the shape, with its SQL."""
    return [
        (column, NOW if value == NOW else literal(value))
        for (table, column), value in shape.defaults.items()
        if table == name
        and column in found.columns
        and found.columns[column].default is None
        and not found.columns[column].generated
    ]


def examine(
    connection: Connection, shape: Shape, tables: dict[str, Table], home: str
) -> Iterator[MigrationError]:
    """What the mapping names and is not there, and constants that their column does not take."""
    for name, here in shape.targets.items():
        if name not in tables:
            yield Misconfigured(
                f"{shape.where('tables', name)}: the table {home}.{here} does not exist",
                hint="Name a table that is there, or leave the line out: then it is made.",
            )
    for (name, column), value in shape.defaults.items():
        where = shape.where("defaults", f"{name}.{column}")
        if name not in tables:
            yield Misconfigured(
                f"{where}: the table {home}.{shape.target(name)} does not exist",
                hint="Leave the line out: what the migration makes needs none.",
            )
        elif column not in tables[name].columns:
            yield Misconfigured(
                f"{where}: {tables[name].label} has no column {column}",
                hint=f"It has {', '.join(tables[name].columns)}.",
            )
        elif value != NOW and not _takes(connection, tables[name].columns[column], value):
            yield Misconfigured(
                f"{where}: {tables[name].label}.{column} is {tables[name].columns[column].type} and"
                f" does not take {value!r}",
                hint=_labels(tables[name].columns[column]) or "Give a value of that type.",
            )


def _takes(connection: Connection, column: Column, value: str) -> bool:
    try:
        with connection.begin_nested():
            connection.execute(sa.text(f"SELECT CAST(:value AS {column.type})"), {"value": value})
    except DBAPIError:
        return False
    return True


def _labels(column: Column) -> str:
    return f"One of {', '.join(column.enum)}." if column.enum else ""


def required(name: str, table: Table, column: Column) -> Incompatible:
    """A column that must have a value and that the migration does not write."""
    return Incompatible(
        f"{table.label}.{column.name}: expected null allowed, for rows that have no value, or a"
        " default, found neither",
        hint=f'In the mapping: [defaults] "{name}.{column.name}" = "{suggested(column)}"',
    )


def suggested(column: Column) -> str:
    """A constant that the column takes, for a first mapping."""
    if column.enum:
        return next((each for each in column.enum if each.lower() == "active"), column.enum[0])
    if column.base.startswith(("timestamp", "date")):
        return NOW
    if column.base in INTEGER_TYPES | {"numeric", "real", "double precision"}:
        return "0"
    if column.base in ("json", "jsonb"):
        return "{}"
    return "false" if column.base == "boolean" else ""
