"""Throttling: workers start no batch while the database shows strain, or outside the window.

What is under way ends, so the strain that a batch may add is that of the batches already claimed.
A worker that waits holds a message and nothing else: no claim, no transaction, no session.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import sqlalchemy as sa
import structlog
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from models.errors import Stopped
from models.ledger.tables import WORKED_ON, runs
from models.postgres.database import classify, transaction
from models.postgres.load import Gauge, Limits, excess, parse_limits
from models.settings import Settings
from models.window import NEXT_BATCH
from models.window import parse as parse_window
from worker import shutdown

LOOK_SECONDS = 1.0
# The message goes back to its queue then, well below the time limit of its task.
LONGEST_WAIT_SECONDS = 600.0
# The look's commit, as small as one can be that still has to reach the disk.
_COMMIT = text("SELECT pg_logical_emit_message(true, 'migration', '')")
log = structlog.get_logger("migration.throttle")


class Throttle:
    """One a process; looks at the signals at most once a second."""

    def __init__(self) -> None:
        self._gauge = Gauge()
        self._looked = float("-inf")
        self._why: str | None = None

    def wait(self, engine: Engine, settings: Settings, run_id: str) -> None:
        """Return when a batch of the run may begin.

        Raises Stopped when the worker has to stop, or after LONGEST_WAIT_SECONDS.
        """
        end = time.monotonic() + LONGEST_WAIT_SECONDS
        while self._is_held(engine, settings, run_id):
            shutdown.check()
            if time.monotonic() >= end:
                raise Stopped("Throttled for too long to keep the message")
            # Its sessions may be what the database has too many of.
            engine.dispose()
            time.sleep(LOOK_SECONDS)

    def _is_held(self, engine: Engine, settings: Settings, run_id: str) -> bool:
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return self._why is not None
        before = self._why
        try:
            tuned = _tuned(engine, settings, run_id)
            self._why = (tuned.closed or self._look(engine, tuned.limits)) if tuned else None
            if self._why or before:
                _say(engine, run_id, self._why)
        except DBAPIError as failure:
            # The worker that claims the batch meets the same error, and handles it.
            log.warning("no look at the signals", error=classify(failure).message)
            self._why = None
        self._looked = time.monotonic()
        if bool(before) != bool(self._why):
            log.warning(
                "throttled" if self._why else "going on", run=run_id, by=self._why or before
            )
        return self._why is not None

    def _look(self, engine: Engine, limits: Limits) -> str | None:
        if limits.is_off:
            return None
        with transaction(engine) as connection:
            found = self._gauge.read(connection)
            if limits.commit is not None:
                connection.execute(_COMMIT)
            written = time.monotonic()
        if limits.commit is not None:
            found["commit"] = time.monotonic() - written
        return excess(found, limits)


@dataclass(frozen=True)
class _Tuned:
    """The limits of a run, and until when its window is closed, if it is."""

    limits: Limits
    closed: str | None = None


def _tuned(engine: Engine, settings: Settings, run_id: str) -> _Tuned | None:
    """What `producer tune` set for the run, else the settings. A rollback waits for no window.

    None for a run that nobody works on: the claim refuses its batch, and another run, or the
    rollback of an older one, needs the worker.
    """
    with transaction(engine, is_single=True) as connection:
        row = connection.execute(
            sa.select(
                runs.c.state, runs.c.throttle, runs.c.hours, sa.func.clock_timestamp().label("now")
            ).where(runs.c.id == run_id)
        ).one_or_none()
    if row is None or row.state not in WORKED_ON:
        return None
    limits = settings.throttle if row.throttle is None else parse_limits(row.throttle)
    window, name = settings.window, "MIGRATION_WINDOW"
    if row.hours is not None:
        window, name = parse_window(row.hours), "The window of the run"
    opens_at = window.opens_at(row.now) if window and row.state != "rolling_back" else None
    if opens_at is None:
        return _Tuned(limits)
    return _Tuned(limits, f"{name} is {window}; {NEXT_BATCH} at {opens_at:%H:%M}")


def _say(engine: Engine, run_id: str, why: str | None) -> None:
    with transaction(engine) as connection:
        connection.execute(
            sa.update(runs)
            .where(runs.c.id == run_id)
            .values(throttled_by=why, throttled_at=sa.func.clock_timestamp())
        )
