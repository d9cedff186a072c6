"""Source rows for a trial: a few of each source, with their children."""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy import Connection, text

from models.engine.source import Sources, SourceTable
from models.postgres.keys import list_cast

ROOTS, CHILDREN_A_ROOT = 50, 100


@dataclass
class Sample:
    """Keys of source rows, as text: by entity, each with its parent's key where it has one."""

    keys: dict[str, dict[str, str | None]] = field(default_factory=dict)
    # Keys of rows that the trial inserts itself.
    made_up: set[str] = field(default_factory=set)
    # Why there is no made-up row, or not all of them.
    note: str = ""

    def of(self, entity: str) -> list[str]:
        """The keys of an entity."""
        return list(self.keys.get(entity, ()))

    @property
    def parents(self) -> dict[str, str | None]:
        """The parent's key of each child."""
        return {
            key: parent for keys in self.keys.values() for key, parent in keys.items() if parent
        }

    @property
    def rows(self) -> int:
        """How many rows there are in all."""
        return sum(map(len, self.keys.values()))


def pick(connection: Connection, sources: Sources) -> Sample:
    """The first rows of each source without a parent, and children of these."""
    found = Sample()
    for entity, table in sources.items():
        if not table.source.parent:
            key = table.key_of("t")
            query = text(f"SELECT {key}::text FROM {table.sql} t ORDER BY {key} LIMIT {ROOTS}")
            found.keys[entity] = dict.fromkeys(connection.scalars(query))
    for entity, table in sources.items():
        if table.source.parent:
            parents = found.of(table.source.parent)
            found.keys[entity] = children(connection, sources, table, parents)
    return found


def again(connection: Connection, sources: Sources, earlier: Sample) -> Sample:
    """The roots of an earlier sample, with the children that they have now.

    The application may have given them more since, and taken some away.
    """
    found = Sample(note=earlier.note)
    for entity, keys in earlier.keys.items():
        if not sources[entity].source.parent:
            found.keys[entity] = dict(keys)
    for entity, keys in earlier.keys.items():
        if parent := sources[entity].source.parent:
            parents = {*found.of(parent), *filter(None, keys.values())}
            found.keys[entity] = children(connection, sources, sources[entity], sorted(parents))
    return found


def children(
    connection: Connection, sources: Sources, table: SourceTable, parents: list[str]
) -> dict[str, str | None]:
    """Keys of rows that belong to these parents, each with its parent's key."""
    kind = list_cast(sources[table.source.parent].key.base)
    key, parent = table.key_of("t"), table.parent_of("t")
    query = text(
        f"SELECT {key}::text AS key, {parent}::text AS parent FROM {table.sql} t"
        f" WHERE {parent} = ANY(CAST(:parents AS {kind}[])) ORDER BY {key}"
        f" LIMIT {ROOTS * CHILDREN_A_ROOT}"
    )
    return {row.key: row.parent for row in connection.execute(query, {"parents": parents})}
