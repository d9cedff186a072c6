"""The source tables, found and examined before anything reads them: names, mapped columns, keys."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from sqlalchemy import Connection, text

from models.engine.schema.shape import Mapped, Path, Shape
from models.engine.source import NONE, Source, Sources, SourceTable
from models.errors import Incompatible, MigrationError, Misconfigured
from models.postgres.catalog import (
    DEFAULT_COLLATION,
    Column,
    Table,
    quote_name,
    read_both,
    read_tables,
    tables_with,
)
from models.postgres.keys import KEY_TYPES, key_family


def examine(
    connection: Connection,
    sources: Sequence[Source],
    names: Sequence[str],
    shape: Shape | None = None,
    beside: Iterable[str] = (),
) -> tuple[Sources | None, list[MigrationError]]:
    """The tables under these names, where all are there, and all that the engine cannot work with.

    Misconfigured for a table that is not there, Incompatible for a table or a column. `beside` are
    quoted names of tables to read with them, in the schema of the first (`Sources.beside`).
    """
    shape = shape or Shape()
    found, others = read_both(connection, [quote_name(name) for name in names], list(beside))
    tables: dict[str, SourceTable] = {}
    errors: list[MigrationError] = []
    for source, name in zip(sources, names, strict=True):
        table = found.get(quote_name(name))
        parent = tables.get(source.parent)
        if name == NONE and source.if_none and parent and parent.source.key in parent.columns:
            tables[source.entity] = SourceTable.none(source, parent)
            meant = (name, shape.sources.get(source.plural, name), source.table)
            errors += _check_none(connection, tables[source.entity], dict.fromkeys(meant), parent)
            continue
        if table is None:
            named = f"Set {source.setting} to the name it has here. " if source.setting else ""
            if source.if_none:
                named += f"If there is no such table: {source.setting}={NONE}. "
            errors.append(
                Misconfigured(
                    f"The legacy table {name} does not exist",
                    hint=f"{named}{tables_with(connection, source.columns)}",
                )
            )
            continue
        as_found = SourceTable(**vars(table), source=source, own_columns=table.columns)
        paths = shape.columns.get(source.plural, {})
        tables[source.entity], unmapped = _map(connection, as_found, paths, shape)
        errors += unmapped
        refused = {*paths} if unmapped else set()
        mappable = shape.mappable.get(source.plural, ())
        errors += _check(connection, tables[source.entity], refused, mappable)
    if len(tables) < len(sources):
        return None, errors
    there = Sources(tables, shape, others)
    for child in there.values():
        errors += _check_parent(there, child)
    return there, errors


def _map(
    connection: Connection, table: SourceTable, paths: Mapping[str, Path], shape: Shape
) -> tuple[SourceTable, list[MigrationError]]:
    """The table with its mapped columns in place, and what of the mapping is not there."""
    mapped: dict[str, Mapped] = {}
    errors: list[MigrationError] = []
    wanted = {name: quote_name(path.table) for name, path in paths.items() if path.table}
    others = read_tables(connection, list(dict.fromkeys(wanted.values()))) if wanted else {}
    for name, path in paths.items():
        where = shape.where("columns", table.source.plural, name)
        own = table.columns.get(path.column)
        other = others.get(wanted.get(name, ""))
        if own is None:
            errors.append(_unmapped(where, table, path.column))
        elif not path.table:
            mapped[name] = Mapped(path.column, own)
        elif other is None:
            errors.append(
                Misconfigured(
                    f"{where}: the table {path.table} does not exist",
                    hint="Name a table that is there: column -> table.column.",
                )
            )
        elif path.value not in other.columns:
            errors.append(_unmapped(where, other, path.value))
        elif not _is_reached(own, other):
            errors.append(
                Misconfigured(
                    f"{where}: {table.label}.{path.column} ({own.type}) cannot point at"
                    f" {other.label}: that needs a unique id of the same type",
                    hint="Name a column that holds the id of a row of that table.",
                )
            )
        else:
            mapped[name] = Mapped(path.column, other.columns[path.value], other.sql)
    columns = table.columns | {name: each.value for name, each in mapped.items()}
    return replace(table, columns=columns, mapped=mapped), errors


def _is_reached(own: Column, other: Table) -> bool:
    key = other.columns.get("id")
    is_key = key is not None and other.is_unique("id")
    return bool(is_key and key and key_family(key.base) == key_family(own.base))


def _unmapped(where: str, table: Table, column: str) -> Misconfigured:
    near = difflib.get_close_matches(column, table.columns, n=1)
    meant = f"; did you mean {near[0]}?" if near else ""
    return Misconfigured(
        f"{where}: {table.label} has no column {column}{meant}",
        hint=f"It has {', '.join(table.columns)}.",
    )


def _check(
    connection: Connection, table: SourceTable, refused: set[str], mappable: Sequence[str]
) -> Iterator[MigrationError]:
    source = table.source
    if table.kind != "r":
        kind = "partitioned" if table.kind == "p" else "no plain table"
        yield Incompatible(f"{table.label} is {kind}", hint="Only plain tables can be migrated.")
        return
    for column in source.columns:
        if column not in table.columns and column not in refused:
            line = f'[columns.{source.plural}] {column} = "…"'
            mapped = f" In the mapping: {line}, one of {', '.join(table.columns)}."
            yield Incompatible(
                f"{table.label} has no column {column}",
                hint=f"It is required. {tables_with(connection, source.columns)}"
                + (mapped if column in mappable else ""),
            )
    key = table.columns.get(source.key)
    label = f"{table.label}.{source.key}"
    if key and key.base not in KEY_TYPES:
        yield Incompatible(
            f"{label}: expected varchar, text, uuid, integer or bigint, found {key.type}",
            hint="Change the column's type.",
        )
    if key and (not key.not_null or not table.is_unique(source.key)):
        yield Incompatible(
            f"{label} must be unique and not null",
            hint=f"ALTER TABLE {table.label} ADD PRIMARY KEY ({source.key}), after fixing its"
            " duplicates.",
        )
    for name in dict.fromkeys((source.key, source.parent_column)):
        column_found = table.columns.get(name)
        if column_found and not column_found.deterministic:
            yield Incompatible(
                f"{table.label}.{name} has a nondeterministic collation, which takes different"
                " keys for equal",
                hint=f'ALTER TABLE {table.label} ALTER {name} TYPE {column_found.type} COLLATE "C"',
            )


def _check_none(
    connection: Connection, none: SourceTable, names: Iterable[str], parent: SourceTable
) -> Iterator[MigrationError]:
    """Tables of these names that hold rows of this parent's: somebody said `none` by mistake."""
    for table in read_tables(connection, [quote_name(name) for name in names]).values():
        key = table.key_on(none.source.parent_column)
        if key is not None and key.refers_to != parent.oid:
            continue
        # A worker may not read what it never migrates; the producer may.
        may_read = text("SELECT has_table_privilege(CAST(:oid AS oid), 'SELECT')")
        if connection.scalar(may_read, {"oid": table.oid}) and connection.scalar(
            text(f"SELECT EXISTS (SELECT FROM {table.sql})")
        ):
            yield Misconfigured(
                f"{none.source.setting} is {NONE}, but {table.label} holds rows",
                hint=f"Set {none.source.setting} to {table.label}, or rename that table if these"
                " are no such rows.",
            )


def _check_parent(sources: Sources, child: SourceTable) -> Iterator[Incompatible]:
    parent = sources.parent(child)
    column = child.columns.get(child.source.parent_column)
    key = parent.columns.get(parent.source.key) if parent else None
    if parent is None or key is None or column is None:
        return
    label, owner = f"{child.label}.{column.name}", f"{parent.label}.{key.name}"
    if key_family(column.base) != key_family(key.base):
        yield Incompatible(
            f"{label} is {column.type}, but {owner} is {key.type}",
            hint="Give both columns the same type.",
        )
    if len({column.collation, key.collation} - {0, DEFAULT_COLLATION}) > 1:
        yield Incompatible(
            f"{label} and {owner} have different collations",
            hint="Give both columns the same collation.",
        )
    keys = [each for each in child.keys if column.name in each.columns]
    if keys and all(each.refers_to != parent.oid for each in keys):
        setting = parent.source.setting
        named = f"Set {setting} to the table that it points at, or name" if setting else "Name"
        yield Incompatible(
            f"{label} has a foreign key ({keys[0].name}) to another table than {parent.label}",
            hint=f"{named} the table of these {parent.source.plural}.",
        )
