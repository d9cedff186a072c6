"""Waiting for a run: live progress by stage, and the reconciler meanwhile."""

from __future__ import annotations

import time
from contextlib import suppress

import sqlalchemy as sa
from rich.console import Console
from rich.live import Live
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from models.errors import RunLost, UnknownRun
from models.ledger.tables import WORKED_ON, runs
from models.postgres.database import name_of, transaction
from models.reports.run import RunReport
from models.settings import Settings
from producer.broker.attendance import Attendance
from producer.outage import Patience
from producer.reports import live_view, status
from producer.runs import budget, reconciler

POLL_SECONDS, LONGEST_POLL_SECONDS, GLANCE_SECONDS = 0.5, 2.0, 0.1
# Looking takes longer the more batches there are; it is to take no more than this share of time.
LOOKING_SHARE = 0.02


def until_over(engine: Engine, settings: Settings, run_id: str, console: Console) -> RunReport:
    """Wait until the run is over; shows progress on the console, returns the report.

    Servers that go away are waited for: the run lives in the ledger, not in this process. So is
    the end of an operator's pause; one by the error budget needs a human, and ends the wait.
    """
    patience = Patience(lambda line: console.print(line, markup=False, soft_wrap=True))
    last_tick = time.monotonic()
    attendance = Attendance(engine, run_id)
    seen: RunReport | None = None
    took = 0.0
    with Live(console=console, auto_refresh=False) as live:
        while True:
            now = time.monotonic()
            with patience():
                found = _look(engine, run_id)
                took = time.monotonic() - now
                _show(live, found, seen)
                seen = found
                if not (_is_waited_out(found) or found.state in WORKED_ON):
                    return status.read(engine, run_id)
                if now - last_tick >= reconciler.TICK_SECONDS:
                    last_tick = now
                    reconciler.tick(engine, settings)
                if not _is_waited_out(found):
                    for line in attendance.news(_done(found)):
                        console.print(line, markup=False, soft_wrap=True)
            pause = max(POLL_SECONDS, min(LONGEST_POLL_SECONDS, took / LOOKING_SHARE))
            _rest(engine, run_id, pause, seen.state if seen else None)


def _look(engine: Engine, run_id: str) -> RunReport:
    """The run as it is; raises RunLost where the ledger no longer has it."""
    try:
        return status.look(engine, run_id)
    except UnknownRun:
        raise RunLost(
            f"Run {run_id} is no longer in the ledger ({name_of(engine)}): after a failover, the"
            " new primary never received it, nor any row that it wrote",
            hint="Start it again: producer enqueue-all --wait. If somebody dropped the ledger, see"
            " producer status --history.",
        ) from None


def _rest(engine: Engine, run_id: str, seconds: float, was: str | None) -> None:
    """Sleep so long, or until the run is no longer in that state, which is one row to look at."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, GLANCE_SECONDS))
        with suppress(DBAPIError), transaction(engine) as connection:
            if connection.scalar(sa.select(runs.c.state).where(runs.c.id == run_id)) != was:
                return


def _show(live: Live, found: RunReport, before: RunReport | None) -> None:
    live_view.failures(live.console, found, before)
    was_waited_out = before is not None and _is_waited_out(before)
    if _is_waited_out(found) and not was_waited_out:
        live.console.print(
            f"{live_view.paused(found)}. Ctrl-C stops waiting, the run stays paused",
            markup=False,
            soft_wrap=True,
        )
    elif was_waited_out and found.state in WORKED_ON:
        live.console.print("Resumed")
    if live.console.is_terminal:
        live.update(live_view.screen(found), refresh=True)
    elif found.state in WORKED_ON:
        live_view.news(live.console, found, before)


def _is_waited_out(found: RunReport) -> bool:
    """Whether an operator has paused the run, and will resume or cancel it."""
    return found.state == "paused" and found.paused_by != budget.PAUSED_BY


def _done(found: RunReport) -> list[tuple[str, int]]:
    return [(stage.name, stage.batches.done) for stage in found.stages]
