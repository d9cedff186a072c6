"""Sources: the tables that a migration reads, as declared and as found.

From a source alone the engine derives paging, counting, capture, replay, the cutover's lock, retry
and the names in reports.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

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
    """A source as found in the database."""

    source: Source

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

    def __init__(self, tables: Mapping[str, SourceTable]) -> None:
        self._tables = dict(tables)
        self._plurals = {table.source.plural: table for table in tables.values()}

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
        texts = [f"{alias}.{quote(c)}::text" for c in judged_by if c in table.columns]
        parent = self.parent(table)
        if parent is not None:
            there = [c for c in parent.source.judged_by if c in parent.columns]
            judged = ", ".join(f"o.{quote(column)}::text" for column in there) or "''"
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
    connection: Connection, sources: Sequence[Source], names: Sequence[str]
) -> tuple[Sources | None, list[MigrationError]]:
    """The tables under these names, where all are there, and all that the engine cannot work with.

    Misconfigured for a table that is not there, Incompatible for a table or a column.
    """
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
        tables[source.entity] = SourceTable(**vars(table), source=source)
        errors += _check(connection, tables[source.entity])
    if len(tables) < len(sources):
        return None, errors
    there = Sources(tables)
    for child in there.values():
        errors += _check_parent(there, child)
    return there, errors


def parents_are_enforced(sources: Sources, child: SourceTable) -> bool:
    """Whether a validated foreign key makes rows without a parent impossible."""
    key = child.key_on(child.source.parent_column)
    parent = sources[child.source.parent]
    return bool(key and key.valid and key.refers_to == parent.oid and child.parent_key.not_null)


def _check(connection: Connection, table: SourceTable) -> Iterator[MigrationError]:
    source = table.source
    if table.kind != "r":
        kind = "partitioned" if table.kind == "p" else "no plain table"
        yield Incompatible(f"{table.label} is {kind}", hint="Only plain tables can be migrated.")
        return
    for column in source.columns:
        if column not in table.columns:
            yield Incompatible(
                f"{table.label} has no column {column}",
                hint=f"It is required. {tables_with(connection, source.columns)}",
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
