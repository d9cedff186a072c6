"""The words of a report, which the migration of this process gives."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from models.engine import current
from models.errors import MigrationError

if TYPE_CHECKING:
    from models.engine.migration import Migration

# Where there is no migration to ask.
ROWS = "rows"

# A discrepancy and discrepancies, but a key and keys; a batch and batches.
_CONSONANT_Y, _HISS = re.compile("(?<![aeiou])y$"), re.compile("(ch|s|x)$")


def number(count: int, noun: str) -> str:
    """A count with its noun: `1 row`, `1,204 rows`, `2 discrepancies`."""
    if count != 1:
        noun = _HISS.sub(r"\1e", _CONSONANT_Y.sub("ie", noun)) + "s"
    return f"{count:,} {noun}"


def migration() -> Migration | None:
    """The migration of this process; None where its name is the error that is reported."""
    try:
        return current.migration()
    except MigrationError:
        return None


def first() -> str:
    """The word for the rows that the figures of a run are named after."""
    found = migration()
    return found.plural(found.first) if found else ROWS


def reconciled() -> str:
    """The word for the rows that the reconciliation checks."""
    found = migration()
    return found.plural(found.reconciled) if found else ROWS


def planned() -> str:
    """The word for the rows that a plan counts: those of the first source."""
    found = migration()
    return found.sources[0].plural if found else ROWS
