"""Whether workers consume the queues in which a run's batches wait: said once, until it changes."""

from __future__ import annotations

import time
from collections import Counter

import sqlalchemy as sa
from sqlalchemy import Engine

from models.ledger.tables import batches
from models.postgres.database import transaction
from models.reports.words import number
from producer.broker import snapshot
from producer.broker.messages import Message

SILENT_SECONDS = 4.0
_ANSWER_SECONDS = 1.0
_NOBODY = "No worker is running. Start one: celery -A worker worker (waiting for it)"


class Attendance:
    """What a command that waits knows of the workers of its run."""

    def __init__(self, engine: Engine, run_id: str) -> None:
        self._engine, self._run_id = engine, run_id
        self._idle: set[str] = set()
        self._done: object = None
        self._looked = time.monotonic()
        self._said: frozenset[str] = frozenset()

    def news(self, done: object) -> list[str]:
        """What changed, a line each; asks ledger and workers every few seconds.

        `done` is any value that changes when a batch is done.
        """
        if time.monotonic() - self._looked < SILENT_SECONDS:
            return []
        self._looked = time.monotonic()
        open_, idle = self._open()
        is_moving, self._done = done != self._done, done
        # A queue that was just filled may be idle for a moment.
        silent = self._idle & idle if is_moving else set(open_)
        self._idle = idle
        served = _served() if silent else set()
        if served is None and is_moving:
            # A worker without a process of its own for batches answers between two of them.
            return []
        missing = frozenset(silent - (served or set()))
        before, self._said = self._said, missing
        if not missing:
            return ["Workers consume every queue now"] if before else []
        if served is None:
            return [] if before else [_NOBODY]
        return [
            f"No worker consumes the queue {queue} ({number(open_[queue], 'batch')} waiting)."
            f" Start one: celery -A worker worker -Q {queue}"
            for queue in sorted(missing - before)
        ]

    def _open(self) -> tuple[Counter[str], set[str]]:
        """Batches that are not done, by queue; the queues of which none is worked on."""
        states = batches.c.state
        with transaction(self._engine) as connection:
            rows = connection.execute(
                sa.select(batches.c.stage, batches.c.step, states, sa.func.count().label("number"))
                .where(batches.c.run_id == self._run_id, states.in_(("pending", "running")))
                .group_by(batches.c.stage, batches.c.step, states)
            ).all()
        number: Counter[str] = Counter()
        busy = set()
        for row in rows:
            queue = Message(self._run_id, 0, row.stage, row.step).queue
            number[queue] += row.number
            if row.state == "running":
                busy.add(queue)
        return number, set(number) - busy


def _served() -> set[str] | None:
    """The queues that workers consume; None where no worker answers."""
    answers = snapshot.answers("active_queues", _ANSWER_SECONDS)
    if not answers:
        return None
    return {queue["name"] for queues in answers.values() for queue in queues or ()}
