"""A database that refuses all rows of a batch alike: the batch fails, and nobody is set aside.

Whether it does is asked once 20 rows of a kind were refused alone for one cause, while none of that
kind was written: a sample of the rows not tried yet, spread over the batch, has the last word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import TypeVar

from models.errors import MigrationError
from models.steps.base import Counts

REFUSED_ALONE = 20
SAMPLE = 20

T = TypeVar("T")


class Refusals:
    """What the rows of one kind met in a batch."""

    def __init__(self, entity: str) -> None:
        self.entity = entity
        self.any_written = False
        self._causes: Counter[tuple[str, str | None]] = Counter()

    def note(self, error: MigrationError) -> bool:
        """Count a row that was refused alone; whether it is time to try the sample."""
        code = getattr(error, "sqlstate", error.message)
        cause = (code, getattr(error, "constraint", None))
        self._causes[cause] += 1
        return not self.any_written and self._causes[cause] % REFUSED_ALONE == 0


def has_written(counts: Counts) -> bool:
    """Whether an attempt wrote anything; how many legacy rows it saw does not count."""
    return any(
        _is_there(value)
        for value in counts.values()
        if not (isinstance(value, dict) and "total" in value)
    )


def _is_there(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_is_there, value.values()))
    return Decimal(str(value)) != 0


def spread(candidates: Sequence[T]) -> list[T]:
    """A sample, evenly spread, with the last one in it."""
    size = min(SAMPLE, len(candidates))
    return [candidates[(place + 1) * len(candidates) // size - 1] for place in range(size)]
