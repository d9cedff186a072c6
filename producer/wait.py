"""Waiting for a run: live progress by stage, and the reconciler meanwhile."""

from __future__ import annotations

import time
from contextlib import suppress

import sqlalchemy as sa
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError
from rich.console import Console
from rich.live import Live
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from models.database import classify, transaction
from models.errors import Transient
from models.ledger import WORKED_ON, runs
from models.messages import RunReport
from models.settings import Settings
from producer import display, reconciler, report
from producer.queue import app

POLL_SECONDS, LONGEST_POLL_SECONDS, GLANCE_SECONDS = 0.5, 2.0, 0.1
# Looking takes longer the more batches there are; it is to take no more than this share of time.
LOOKING_SHARE = 0.02
SILENT_SECONDS = 4.0


def until_over(engine: Engine, settings: Settings, run_id: str, console: Console) -> RunReport:
    """Wait until the run is over or paused; shows progress on the console, returns the report.

    Servers that go away are waited for: the run lives in the ledger, not in this process.
    """
    last_tick = last_change = time.monotonic()
    seen: RunReport | None = None
    took = 0.0
    with Live(console=console, auto_refresh=False) as live:
        while True:
            now = time.monotonic()
            try:
                found = report.look(engine, run_id)
                took = time.monotonic() - now
                _show(live, found, seen)
                if found.state not in WORKED_ON:
                    return report.read(engine, run_id)
                if now - last_tick >= reconciler.TICK_SECONDS:
                    last_tick = now
                    reconciler.tick(engine, settings)
                if seen is None or _done(found) != _done(seen):
                    last_change = now
                elif now - last_change >= SILENT_SECONDS:
                    last_change = now
                    if not workers_answer():
                        console.print(
                            "No worker is running. Start one: celery -A worker worker"
                            " (waiting for it)"
                        )
                seen = found
            except (RedisError, OperationalError, OSError) as failure:
                console.print(f"Redis does not answer ({type(failure).__name__}); waiting for it")
            except DBAPIError as failure:
                error = classify(failure)
                if not isinstance(error, Transient):
                    raise error from None
                console.print(f"The database does not answer ({error.message}); waiting for it")
            _rest(
                engine, run_id, max(POLL_SECONDS, min(LONGEST_POLL_SECONDS, took / LOOKING_SHARE))
            )


def workers_answer() -> bool:
    """Whether any worker answers a ping within a second."""
    return bool(app.control.ping(timeout=1.0))


def _rest(engine: Engine, run_id: str, seconds: float) -> None:
    """Sleep so long, or until the run is over, which is one row to look at."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, GLANCE_SECONDS))
        with suppress(DBAPIError), transaction(engine) as connection:
            state = connection.scalar(sa.select(runs.c.state).where(runs.c.id == run_id))
            if state not in WORKED_ON:
                return


def _show(live: Live, found: RunReport, before: RunReport | None) -> None:
    if live.console.is_terminal:
        live.update(display.screen(found), refresh=True)
    elif found.state in WORKED_ON:
        display.news(live.console, found, before)


def _done(found: RunReport) -> list[tuple[str, int]]:
    return [(stage.name, stage.batches.done) for stage in found.stages]
