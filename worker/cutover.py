"""The cutover: replays and verifies what the application wrote last, so that the run may end.

Rounds without a lock bring the number of captured changes down to a few; then, in one short
transaction in which no other session writes to the legacy tables, the rest. What comes after
belongs to the next run.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, event

from models.engine.live.capture import require_triggers
from models.engine.live.cutover import (
    HELD_MS,
    is_any_change_noted,
    lock,
    next_scope,
    pending,
)
from models.engine.live.replay import KEYS_A_BATCH
from models.engine.step import Context, Counts, Scope, Step, add
from models.errors import TooBig, Transient
from models.ledger import claims
from models.ledger.claims import Claim
from models.postgres.database import LOCKED, as_ours, transaction
from worker import bisect, verify
from worker.lease import Watch

ATTEMPTS = 30
ROUNDS = 50


def run(
    engine: Engine, read: Callable[[Connection], Context], claim: Claim, watch: Watch
) -> Counts:
    """Replay all captured changes, the last ones under the lock; `read` gives the context.

    Raises Transient when the lock was not granted: some session writes without a pause.
    """
    at_most = KEYS_A_BATCH // 2
    for attempt in range(ATTEMPTS):
        _drain(engine, read, claim, watch, at_most)
        try:
            with as_ours(), transaction(engine) as connection, watch.over(connection):
                context = read(connection)
                lock(context)
                locked_at = time.monotonic()
                require_triggers(context)
                with _time_limit(connection, locked_at + HELD_MS / 1000):
                    counts = claims.record(connection, claim, _take_up_all(context))
                    counts |= {"locked_ms": round(1000 * (time.monotonic() - locked_at))}
                    claims.complete(connection, claim, counts)
            return counts
        except Transient:
            pass
        except TooBig:
            # What takes so long (a row to be quarantined, perhaps) is replayed without the lock.
            at_most = 0
        watch.sleep(min(2.0, 0.1 * 2**attempt) * random.uniform(0.5, 1.0))
    raise Transient("The legacy tables stayed locked by another session", hint=LOCKED)


@contextmanager
def _time_limit(connection: Connection, end: float) -> Iterator[None]:
    """Raise TooBig for the statement that runs beyond `end`, by the monotonic clock.

    Whatever limit the statements set themselves.
    """

    def limit(_: Connection, cursor: Any, *__: Any) -> None:
        left = int(1000 * (end - time.monotonic()))
        if left <= 0:
            raise TooBig("The time for which the tables may be locked is over")
        # Not on its own: far away, the round trips would be most of the time under the lock.
        cursor.connection.precede(f"SET LOCAL statement_timeout = {left}")

    event.listen(connection, "before_cursor_execute", limit)
    try:
        yield
    finally:
        event.remove(connection, "before_cursor_execute", limit)


def take_up(context: Context, step: Step, scope: Scope) -> Counts:
    """Bring the keys in line with the legacy rows, and verify them at once."""
    counts = add(bisect.apply(context, step, scope), verify.recheck(context, step, scope))
    return add(counts, {"replayed": len(scope.keys or ())})


def _drain(
    engine: Engine,
    read: Callable[[Connection], Context],
    claim: Claim,
    watch: Watch,
    at_most: int,
) -> None:
    """Rounds without the lock, until so many keys are left to replay."""
    for _ in range(ROUNDS):
        with transaction(engine) as connection, watch.over(connection):
            context = read(connection)
            found = pending(context)
            if sum(len(keys) for _, keys in found) <= at_most:
                return
            counts = take_up(context, *next_scope(found))
            claims.record(connection, claim, counts)


def _take_up_all(context: Context) -> Counts:
    if not is_any_change_noted(context):
        return {"replayed": 0}
    found = pending(context)
    # The first replay also where none of its rows has changed: children without a parent come with
    # it.
    counts = take_up(context, *next_scope(found[:1]))
    while True:
        found = pending(context)
        if not any(keys for _, keys in found):
            return counts
        counts = add(counts, take_up(context, *next_scope(found)))
