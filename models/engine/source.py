"""Sources: the tables that a migration reads, as declared and as found.

From a source alone the engine derives paging, counting, capture, replay, the cutover's lock, retry
and the names in reports.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from models.engine.schema.shape import Mapped, Shape
from models.errors import Misconfigured
from models.postgres.catalog import Column, Table, quote
from models.postgres.keys import key_cast, key_family, key_from_text

# The name of a source table that a database does not have.
NONE = "none"


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
    # Columns that target rows are made from: a change of another one is not captured. None: all.
    reads: tuple[str, ...] = ()
    # Columns that decide whether a row is bad: a change of one asks for a retry. Those that are
    # read, or else all columns, where there are none.
    judged_by: tuple[str, ...] = ()
    # Columns of this table that the migration itself writes.
    writes: tuple[str, ...] = ()
    # Where a database may have no such table: the types of the columns that statements name,
    # besides the keys. A setting or a mapping then says `none`.
    if_none: tuple[tuple[str, str], ...] = ()

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
    # SQL that stands for a table that is `none`: a relation of its columns without a row.
    nothing: str = ""

    @classmethod
    def none(cls, source: Source, parent: SourceTable) -> SourceTable:
        """The relation of a source without a table; its keys have the type of the parent's."""
        keys = (source.key, source.parent_column)
        types = {**dict.fromkeys(keys, parent.key.type), **dict(source.if_none)}
        columns = {
            name: replace(parent.key, name=name, type=kind, base=kind)
            for name, kind in types.items()
        } | {name: replace(parent.key, name=name) for name in keys}
        values = ", ".join(f"CAST(NULL AS {kind}) AS {quote(name)}" for name, kind in types.items())
        return cls(
            0, parent.schema, NONE, "r", "", columns, (), (), source, own_columns=columns,
            nothing=f"(SELECT {values} WHERE false)",
        )  # fmt: skip

    @property
    def sql(self) -> str:
        """The table's qualified and quoted name, or the empty relation that stands for it."""
        return self.nothing or super().sql

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
    """The sources as found, by entity (`sources["badge"]`) or plural (`sources.badges`).

    A loop over them meets the tables that are there. A name also gives an empty relation for a
    source that is `none`, so that a statement may read it.
    """

    def __init__(
        self,
        declared: Mapping[str, SourceTable],
        shape: Shape | None = None,
        beside: Mapping[str, Table] | None = None,
    ) -> None:
        # How this database differs from what the migration declares.
        self.shape = shape or Shape()
        # Also those that are `none`, by entity.
        self.declared = dict(declared)
        # The target tables, which were read with them, by their quoted names in the database.
        self.beside = dict(beside or {})
        self._tables = {entity: each for entity, each in declared.items() if not each.nothing}

    def with_shape(self, shape: Shape) -> Sources:
        """The same tables in another shape."""
        return Sources(self.declared, shape, self.beside)

    def __getitem__(self, entity: str) -> SourceTable:
        return self.declared[entity]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables)

    def __len__(self) -> int:
        return len(self._tables)

    def __getattr__(self, plural: str) -> SourceTable:
        for table in self.__dict__.get("declared", {}).values():
            if table.source.plural == plural:
                return table  # type: ignore[no-any-return]
        raise AttributeError(plural)

    @property
    def first(self) -> SourceTable:
        """The first source: the target tables lie in its schema."""
        return next(iter(self._tables.values()))

    @property
    def by_plural(self) -> dict[str, SourceTable]:
        """The tables by plural, in the order of the declaration."""
        return {table.source.plural: table for table in self._tables.values()}

    @property
    def names(self) -> dict[str, str]:
        """The SQL of each declared source by plural, for statements."""
        return {table.source.plural: table.sql for table in self.declared.values()}

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


def parents_are_enforced(sources: Sources, child: SourceTable) -> bool:
    """Whether rows without a parent are impossible: by a validated foreign key, or without rows."""
    if child.nothing:
        return True
    key = child.key_on(child.source.parent_column)
    parent = sources[child.source.parent]
    return bool(key and key.valid and key.refers_to == parent.oid and child.parent_key.not_null)
