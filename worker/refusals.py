"""A database that refuses all rows of a batch alike: the batch fails, and nobody is quarantined.

Whether it does is asked once 20 rows of a kind were refused alone for one cause, while none of that
kind was written: a sample of the rows not tried yet, spread over the batch, has the last word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from sqlalchemy import text

from models.engine.step import Context
from models.errors import MigrationError

REFUSED_ALONE = 20
SAMPLE = 20

# Also what no step counts, such as a name that was changed.
_WRITES = (
    "SELECT pg_stat_get_xact_tuples_inserted(t.oid) + pg_stat_get_xact_tuples_updated(t.oid)"
    " + pg_stat_get_xact_tuples_deleted(t.oid)"
    " FROM unnest(CAST(:oids AS oid[])) WITH ORDINALITY AS t(oid, place) ORDER BY t.place"
)

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


def writes(context: Context, first: str) -> Counter[str]:
    """How many rows of each target table this transaction has written, failed attempts included.

    The statements `first` go before, in the same round trip.
    """
    tables = context.target.tables
    asked, oids = text(f"{first}; {_WRITES}"), [table.oid for table in tables.values()]
    found = context.connection.execute(asked, {"oids": oids})
    return Counter(dict(zip(tables, found.scalars(), strict=True)))


def spread(candidates: Sequence[T]) -> list[T]:
    """A sample, evenly spread, with the last one in it."""
    size = min(SAMPLE, len(candidates))
    return [candidates[(place + 1) * len(candidates) // size - 1] for place in range(size)]
