"""The parts of a declared step: what is rejected, inserted and filled, and examples of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.engine import keys
from models.engine.source import SourceTable
from models.errors import Misconfigured

# SQL of an author, over the source row `s`; or what gives it for the source as found.
Expression = str | Callable[[SourceTable], str]


@dataclass(frozen=True)
class derived_id:  # Authors read it as a function.
    """A text id that follows from the source row's key (`models.engine.keys.id_of`).

    `kind` is a letter, another one for each table. `part` is SQL that tells the several rows of one
    source row apart; it is appended after a dot. An Expect may name the same id: `{id:kind}`.
    """

    kind: str
    part: str = ""

    def __call__(self, source: SourceTable) -> str:
        own = keys.id_of(self.kind, source.key_of("s"), source.key.base)
        return f"({own} || '.' || ({self.part})::text)" if self.part else f"({own})"


@dataclass(frozen=True)
class Reject:
    """A reason for which a source row `s` is quarantined; the message holds nothing of the row."""

    reason: str
    when: str
    message: str


class Insert:
    """Rows of a target table: for each column an SQL expression over the source row `s`.

    `each` is a set-returning expression with an alias, for several rows a source row:
    `jsonb_array_elements_text(s.tags) WITH ORDINALITY AS tag(value, n)`. `where` limits the rows.
    `key` is the target's unique column, which must be among the columns.
    """

    def __init__(
        self, table: str, /, *, key: str = "id", each: str = "", where: str = "true",
        **columns: Expression,
    ) -> None:  # fmt: skip
        if key not in columns:
            raise Misconfigured(
                f"The Insert into {table} has no column {key}, its key",
                hint=f"Add it: Insert({table!r}, {key}=derived_id('a'), ...), or name another one"
                " with key=.",
            )
        self.table, self.key, self.each, self.where, self.columns = table, key, each, where, columns


class Fill:
    """Columns of the source's own table, each filled where it is null, from the row `s`."""

    def __init__(self, **columns: Expression) -> None:
        self.columns = columns


@dataclass(frozen=True)
class Example:
    """A given source row, and what becomes of it: a reason, or rows by table.

    `expected` maps a table to one row or a list of rows, each with the columns to compare.
    `beside` holds rows of other sources by plural, such as the parent.
    """

    given: Mapping[str, Any]
    expected: str | Mapping[str, Mapping[str, Any] | Sequence[Mapping[str, Any]]]
    beside: Mapping[str, Sequence[Mapping[str, Any]]] | None = None
