"""What differs, read once more with its values: for a person who asks, and stored nowhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from sqlalchemy import text

from models.engine.step import Context, Scope, Step
from models.ledger.tables import RECONCILIATION, VERIFICATION

CHUNK_KEYS = 1_000


class Place(NamedTuple):
    """Which difference it is: a row of `migration.differences` without its stage."""

    kind: str
    entity: str
    key: str
    table: str
    detail: str | None


class Values(NamedTuple):
    """The target row's key, and what must be there and what is; null where there is none."""

    target_key: str | None
    expected: str | None
    found: str | None


def read(context: Context, keys: Mapping[str, Sequence[str]]) -> dict[Place, Values]:
    """The values of all that differs now. `keys` are the source keys to look at, by entity.

    A step whose statements select no values gives none. Reads only; safe to repeat.
    """
    found: dict[Place, Values] = {}
    migration = context.migration
    for step in (*migration.steps_of(VERIFICATION), *migration.steps_of(RECONCILIATION)):
        for scope in _scopes(step, keys):
            for statement in (*step.differences(context, scope), *step.details(context, scope)):
                rows = context.connection.execute(
                    text(statement), context.parameters | scope.parameters
                )
                found |= {Place(*row[:5]): Values(*row[5:8]) for row in rows if len(row) == 8}
    return found


def _scopes(step: Step, keys: Mapping[str, Sequence[str]]) -> Iterator[Scope]:
    """The keys of the step's entity, chunk by chunk."""
    left = iter(keys.get(step.entity, ()))
    while chunk := tuple(islice(left, CHUNK_KEYS)):
        yield Scope(keys=chunk, again=True)
