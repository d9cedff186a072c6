"""Sources: the tables that a migration reads, as declared and as found.

From a source alone the engine derives paging, counting, capture, replay, the cutover's lock, retry
and the names in reports.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import Connection

from models.engine.schema.shape import Mapped, Path, Shape
from models.errors import Incompatible, MigrationError, Misconfigured
from models.postgres.catalog import (
    DEFAULT_COLLATION,
    Column,
    Table,
    quote,
    quote_name,
    read_tables,
    tables_with,
)
from models.postgres.keys import KEY_TYPES, key_cast, key_family, key_from_text


@dataclass(frozen=True)
class Source:
    """One table that a migration reads, as its author declares it.

    `entity` is the word for one of its rows, and `plural` for many, in the ledger, in reports and
    in SQL placeholders. `table` is its name in the database (`schema.table` is fine), which the
    environment variable `setting` replaces. The key is one column: unique, not null, an integer, a
    uuid or a text.
    """

    entity: str
    plural: str = ""
    table: str = ""
    setting: str = ""
    key: str = "id"
    # The entity that the rows belong to, and the column that holds its key.
    parent: str = ""
    parent_column: str = ""
    # Columns that must exist besides.
    requires: tuple[str, ...] = ()
    # Columns that target rows are made from: a change of another one is not captured.
    reads: tuple[str, ...] = ()
    # Columns that decide whether a row is bad: a change of one asks for a retry. Those that are
    # read, or else all columns, where there are none.
    judged_by: tuple[str, ...] = ()
    # Columns of this table that the migration itself writes.
    writes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.parent) != bool(self.parent_column):
            raise Misconfigured(
                f"The source {self.entity} needs both parent and parent_column, or neither"
            )
        object.__setattr__(self, "plural", self.plural or f"{self.entity}s")
        object.__setattr__(self, "table", self.table or self.plural)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that must exist."""
        parent = (self.parent_column,) if self.parent else ()
        return tuple(dict.fromkeys((self.key, *parent, *self.requires)))


@dataclass(frozen=True)
class SourceTable(Table):
    """A source as found in the database.

    `columns` has a declared column that is mapped under its declared name, as what it is mapped to.
    """

    source: Source
    mapped: Mapping[str, Mapped] = field(default_factory=dict)
    # The table's own columns by their own names.
    own_columns: Mapping[str, Column] = field(default_factory=dict)

    def value(self, column: str, alias: str) -> str:
        """SQL for the value of a declared column in the row under this alias."""
        found = self.mapped.get(column)
        return found.sql(alias) if found else f"{alias}.{quote(column)}"

    def own(self, column: str) -> str:
        """The table's own column that a declared one is, or that points at its value."""
        found = self.mapped.get(column)
        return found.own if found else column

    def points(self, column: str) -> bool:
        """Whether the value of a declared column is in another table."""
        return column in self.mapped and bool(self.mapped[column].reached)

    @property
    def key(self) -> Column:
        """The key's column."""
        return self.columns[self.source.key]

    @property
    def parent_key(self) -> Column:
        """The column that holds the parent's key."""
        return self.columns[self.source.parent_column]

    def key_of(self, alias: str) -> str:
        """SQL for the key of the row under this alias."""
        return f"{alias}.{quote(self.source.key)}"

    def parent_of(self, alias: str) -> str:
        """SQL for the parent's key of the row under this alias."""
        return f"{alias}.{quote(self.source.parent_column)}"

    def root_of(self, alias: str) -> str:
        """SQL for the key that a change is noted for: the parent's, or the row's own."""
        return self.parent_of(alias) if self.source.parent else self.key_of(alias)


class Sources(Mapping[str, SourceTable]):
    """The sources as found, by entity (`sources["badge"]`) or plural (`sources.badges`)."""

    def __init__(self, tables: Mapping[str, SourceTable], shape: Shape | None = None) -> None:
        # How this database differs from what the migration declares.
        self.shape = shape or Shape()
        self._tables = dict(tables)
        self._plurals = {table.source.plural: table for table in tables.values()}

    def with_shape(self, shape: Shape) -> Sources:
        """The same tables in another shape."""
        return Sources(self._tables, shape)

    def __getitem__(self, entity: str) -> SourceTable:
        return self._tables[entity]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables)

    def __len__(self) -> int:
        return len(self._tables)

    def __getattr__(self, plural: str) -> SourceTable:
        try:
            return self.__dict__["_plurals"][plural]  # type: ignore[no-any-return]
        except KeyError:
            raise AttributeError(plural) from None

    @property
    def first(self) -> SourceTable:
        """The first source: the target tables lie in its schema."""
        return next(iter(self._tables.values()))

    @property
    def by_plural(self) -> dict[str, SourceTable]:
        """The tables by plural, in the order of the declaration."""
        return dict(self._plurals)

    def parent(self, table: SourceTable) -> SourceTable | None:
        """The table that the rows belong to."""
        return self._tables.get(table.source.parent)

    def children(self, entity: str) -> list[SourceTable]:
        """The tables whose rows belong to this entity's."""
        return [table for table in self._tables.values() if table.source.parent == entity]

    def hash_of(self, entity: str, alias: str) -> str:
        """SQL for a hash of what the rules read in the row under this alias, byte for byte.

        It is noted when the row is quarantined: another hash later says that the row, or the parent
        that it was judged by, has changed since.
        """
        table = self[entity]
        judged_by = table.source.judged_by or table.source.reads or tuple(table.columns)
        texts = [f"{table.value(c, alias)}::text" for c in judged_by if c in table.columns]
        parent = self.parent(table)
        if parent is not None:
            there = [c for c in parent.source.judged_by if c in parent.columns]
            judged = ", ".join(f"{parent.value(c, 'o')}::text" for c in there) or "''"
            # Null without a parent: whether there is one is what the rules ask first.
            texts.append(
                f"(SELECT concat({judged}) FROM {parent.sql} o"
                f" WHERE {parent.key_of('o')} = {table.parent_of(alias)} OFFSET 0)"
            )
        seed = "0"
        for text in texts:
            seed = f"hashtextextended(coalesce('=' || {text}, '') COLLATE \"C\", {seed})"
        return seed

    def hash_by_key(self, entity: str, key: str) -> str:
        """SQL for the hash of the row with this key (an SQL expression); null where none is."""
        table = self[entity]
        row_hash = self.hash_of(entity, "x")
        return f"(SELECT {row_hash} FROM {table.sql} x WHERE {table.key_of('x')} = {key})"

    def key_named(self, entity: str, text: str) -> str:
        """SQL for the key of an entity's table that a text names; null where it names none."""
        base = self[entity].key.base
        if key_family(base) == "text":
            return f"CAST({text} AS {key_cast(base)})"
        return key_from_text(text, base)


def examine(
    connection: Connection,
    sources: Sequence[Source],
    names: Sequence[str],
    shape: Shape | None = None,
) -> tuple[Sources | None, list[MigrationError]]:
    """The tables under these names, where all are there, and all that the engine cannot work with.

    Misconfigured for a table that is not there, Incompatible for a table or a column.
    """
    shape = shape or Shape()
    found = read_tables(connection, [quote_name(name) for name in names])
    tables: dict[str, SourceTable] = {}
    errors: list[MigrationError] = []
    for source, name in zip(sources, names, strict=True):
        table = found.get(quote_name(name))
        if table is None:
            named = f"Set {source.setting} to the name it has here. " if source.setting else ""
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
    there = Sources(tables, shape)
    for child in there.values():
        errors += _check_parent(there, child)
    return there, errors


def parents_are_enforced(sources: Sources, child: SourceTable) -> bool:
    """Whether a validated foreign key makes rows without a parent impossible."""
    key = child.key_on(child.source.parent_column)
    parent = sources[child.source.parent]
    return bool(key and key.valid and key.refers_to == parent.oid and child.parent_key.not_null)


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
    meant = f"; {near[0]} is meant?" if near else ""
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
