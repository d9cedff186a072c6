"""What a migration answers when the engine's checks and reports ask it."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal


@dataclass(frozen=True)
class Proof:
    """SQL that tells whether a source row `t` is migrated, for the accounting over whole tables.

    `joins` follow `FROM source t`, each with at most one row; `is_migrated` is a condition.
    """

    joins: str
    is_migrated: str


@dataclass(frozen=True)
class Summary:
    """A table of a report: a title, the columns, and rows of text, numbers and decimals.

    The last row is the sum of the others. `missing` says why there are no rows; `wrong` holds the
    places of rows that are not as they must be.
    """

    title: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str | int | Decimal, ...], ...] = ()
    missing: str = ""
    wrong: tuple[int, ...] = ()


@dataclass(frozen=True)
class Rule:
    """Why a source row is bad, said a second time, in words that no worker uses.

    `rows` is a FROM item with the source row as `alias`; `reason` is SQL, null for a good row.
    """

    rows: str
    alias: str
    reason: str
