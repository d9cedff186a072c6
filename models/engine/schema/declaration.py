"""The target schema of a migration, as its author declares it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from models.engine.source import Source, Sources
from models.errors import Incompatible


@dataclass(frozen=True)
class Reference:
    """A foreign key that the finished schema has, and its action when the other row goes."""

    table: str
    column: str
    refers_to: str
    on_delete: str


class KeyOf(sa.types.UserDefinedType[Any]):
    """The column type of an entity's key, in tables that a migration declares."""

    cache_ok = True

    def __init__(self, entity: str) -> None:
        self.entity = entity

    def get_col_spec(self, **_: Any) -> str:
        raise Incompatible(f"The key type of {self.entity} is known from the database only")


class RawType(sa.types.UserDefinedType[Any]):
    """A column type given by its SQL text, as the catalog prints it: that of a source's key."""

    cache_ok = True

    def __init__(self, sql: str) -> None:
        self.sql = sql

    def get_col_spec(self, **_: Any) -> str:
        return self.sql


def _nothing(sources: Sources) -> sa.MetaData:
    return sa.MetaData(schema=sources.first.schema)


@dataclass(frozen=True)
class Schema:
    """Tables that are created or adopted, columns that sources get, and what closes the schema.

    `declare` gives them for the sources as found, in the schema of the first source. A declared
    table that has a source's plural holds the columns that are added to that source. Foreign keys
    and second indexes are left out of it: they come after the load.
    """

    declare: Callable[[Sources], sa.MetaData] = _nothing
    # The tables that are created, in order, and enums with their labels.
    tables: tuple[str, ...] = ()
    enums: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    references: tuple[Reference, ...] = ()
    # (table, column): indexes that every batch needs, so they are there from the start.
    early_indexes: tuple[tuple[str, str], ...] = ()
    # By source, the columns that get a default and NOT NULL, with the default's SQL.
    defaults: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    # Columns that the migration leaves to their default, and by table those written as null.
    never_written: tuple[str, ...] = ()
    written_as_null: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # By table, the unique columns that an insert meets an existing row on; `id` otherwise.
    conflict_keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # Text columns that may hold a key of this entity instead: null is written there.
    actor_columns: Mapping[str, str] = field(default_factory=dict)
    # By table, the SQL of constants for columns that are added to a table that is there already.
    added: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    # Tables that must be there already.
    adopted: tuple[str, ...] = ()
    # Tables that a run never fills.
    never_filled: tuple[str, ...] = ()
    # Privileges that a run needs on a table, where it needs fewer than all.
    privileges: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, metadata: sa.MetaData, sources: Sequence[Source]) -> Schema:
        """A schema from plain tables: foreign keys of one column are added after the load."""
        plurals = {source.plural for source in sources}
        tables = [table for table in metadata.tables.values() if table.name not in plurals]

        def declare(found: Sources) -> sa.MetaData:
            declared = sa.MetaData(schema=found.first.schema)
            for table in metadata.tables.values():
                columns = [_column(column, found) for column in table.columns]
                sa.Table(table.name, declared, *columns)
            return declared

        references = tuple(
            Reference(
                table.name,
                key.parent.name,
                key.target_fullname.rpartition(".")[0].rpartition(".")[2],
                key.ondelete or "NO ACTION",
            )
            for table in tables
            for key in sorted(table.foreign_keys, key=lambda key: str(key.parent.name))
        )
        return cls(
            declare=declare, tables=tuple(table.name for table in tables), references=references
        )


def _column(column: sa.Column[Any], sources: Sources) -> sa.Column[Any]:
    kind = column.type
    if isinstance(kind, KeyOf):
        kind = RawType(sources[kind.entity].key.type)
    given = column.server_default
    default: Any = given.arg if isinstance(given, sa.DefaultClause) else None
    return sa.Column(
        column.name,
        kind,
        primary_key=column.primary_key,
        nullable=column.nullable,
        unique=column.unique,
        server_default=default,
    )
