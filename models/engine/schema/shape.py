"""How one database differs from what a migration declares: other names, other id types.

A migration gives the shape (`Migration.shape`), for instance from a mapping file; the sources as
found carry it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from models.postgres.catalog import Column, quote


@dataclass(frozen=True)
class Path:
    """Where a declared column's value is: in a column, or in the row that this column points at."""

    column: str
    # The other table, and its column; the row is found by its `id`.
    table: str = ""
    value: str = ""

    def __str__(self) -> str:
        return f"{self.column} -> {self.table}.{self.value}" if self.table else self.column


@dataclass(frozen=True)
class Mapped:
    """A declared column as found: the table's own column, and where its value is."""

    own: str
    value: Column
    # The other table as SQL; "" where the value is in the own column.
    reached: str = ""

    def sql(self, alias: str) -> str:
        """SQL for the value in the row under this alias."""
        own = f"{alias}.{quote(self.own)}"
        if not self.reached:
            return own
        value = f"reached_row.{quote(self.value.name)}"
        return f"(SELECT {value} FROM {self.reached} reached_row WHERE reached_row.id = {own})"


@dataclass(frozen=True)
class Shape:
    """The differences of one database. Empty: it is as declared."""

    # What the mapping says, as a run keeps it; a worker with another one leaves the run alone.
    kept: Mapping[str, object] = field(default_factory=dict)
    # Names of sources by plural, and of target tables by their declared name.
    sources: Mapping[str, str] = field(default_factory=dict)
    targets: Mapping[str, str] = field(default_factory=dict)
    # By plural and declared column.
    columns: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)
    # Constants for target columns that must have a value and that the migration never writes.
    defaults: Mapping[tuple[str, str], str] = field(default_factory=dict)
    # The first integer id; None for one that follows from the type.
    first_id: int | None = None
    # What else the migration reads there.
    options: Mapping[str, str] = field(default_factory=dict)
    # By plural, the declared columns that a mapping may name.
    mappable: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # Where a key of the mapping is, for messages: ("tables", "x") to "line 3 of FILE".
    lines: Mapping[tuple[str, ...], str] = field(default_factory=dict)
    # As found: the target tables whose `id` is an integer or bigint, and those where it is not.
    integer_ids: Mapping[str, str] = field(default_factory=dict)
    # The same as the first run of the ledger found it: a type that was altered since moves no id.
    first_types: Mapping[str, str] = field(default_factory=dict)
    text_ids: frozenset[str] = frozenset()

    def target(self, name: str) -> str:
        """The name here of a declared target table."""
        return self.targets.get(name, name)

    def where(self, *key: str) -> str:
        """A key of the mapping and its line, to begin a message with."""
        line = self.lines.get(key)
        return f"{line}, {'.'.join(key)}" if line else ".".join(key)

    def of_copies(self) -> Shape:
        """The same for a trial's copies, which have the declared names."""
        return replace(self, sources={}, targets={})
