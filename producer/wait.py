"""Waiting for a run: live progress by stage, and the reconciler meanwhile."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from models.database import classify
from models.errors import Transient
from models.ledger import WORKED_ON
from models.messages import RunReport
from models.settings import Settings
from producer import reconciler, report
from producer.queue import app

POLL_SECONDS = 0.5
SILENT_SECONDS = 4.0


def until_over(engine: Engine, settings: Settings, run_id: str, console: Console) -> RunReport:
    """Wait until the run is over or paused; shows progress on the console, returns the report.

    Servers that go away are waited for: the run lives in the ledger, not in this process.
    """
    last_tick = last_change = time.monotonic()
    progress = _progress(console)
    display: AbstractContextManager[Any] = progress if console.is_terminal else nullcontext()
    said: str | None = None
    throttled: str | None = None
    seen: object = None
    with display:
        while True:
            now = time.monotonic()
            try:
                found = report.read(engine, run_id)
                if found.state not in WORKED_ON:
                    _show(progress, found)
                    return found
                if now - last_tick >= reconciler.TICK_SECONDS:
                    last_tick = now
                    reconciler.tick(engine, settings)
                _show(progress, found)
                throttled = _say_throttled(console, found, throttled)
                state = [(stage.name, stage.batches.done) for stage in found.stages]
                if state != seen:
                    said, seen, last_change = _say_stage(console, found, said), state, now
                elif now - last_change >= SILENT_SECONDS:
                    last_change = now
                    if not workers_answer():
                        console.print(
                            "No worker is running. Start one: celery -A worker worker"
                            " (waiting for it)"
                        )
            except (RedisError, OperationalError, OSError) as failure:
                console.print(f"Redis does not answer ({type(failure).__name__}); waiting for it")
            except DBAPIError as failure:
                error = classify(failure)
                if not isinstance(error, Transient):
                    raise error from None
                console.print(f"The database does not answer ({error.message}); waiting for it")
            time.sleep(POLL_SECONDS)


def workers_answer() -> bool:
    """Whether any worker answers a ping within a second."""
    return bool(app.control.ping(timeout=1.0))


class _Pace(ProgressColumn):
    """Rows a second and the time left, as the ledger gives them."""

    def render(self, task: Task) -> Text:
        pace, eta = task.fields.get("pace"), task.fields.get("eta")
        parts = [f"{pace:,.0f} rows/s" if pace else "", f"{eta:,.0f} s left" if eta else ""]
        return Text("  ".join(part for part in parts if part), style="cyan")


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<15}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        _Pace(),
        console=console,
    )


def _show(progress: Progress, found: RunReport) -> None:
    tasks = {task.description: task for task in progress.tasks}
    for stage in found.stages:
        if stage.name not in tasks:
            progress.add_task(stage.name, total=None, state=stage.state)
            tasks = {task.description: task for task in progress.tasks}
        # Stages without a table of rows to go through count their batches.
        has_rows = stage.rows_total > 0
        done = stage.rows if has_rows else stage.batches.done
        total = stage.rows_total if has_rows else stage.batches.total
        pace = stage.rows / stage.seconds if stage.seconds and stage.state == "running" else None
        left = (stage.rows_total - stage.rows) / pace if pace else None
        progress.update(
            tasks[stage.name].id,
            completed=done,
            total=total or None,
            state=stage.state,
            pace=pace,
            eta=left,
        )


def _say_throttled(console: Console, found: RunReport, said: str | None) -> str | None:
    """One line whenever the run is held back, and one when it goes on."""
    if found.throttled_by and said is None:
        console.print(f"Throttled: {found.throttled_by}; it goes on by itself")
    elif said and not found.throttled_by:
        console.print("Going on")
    return found.throttled_by


def _say_stage(console: Console, found: RunReport, said: str | None) -> str:
    """Without a terminal: one line whenever another stage is running."""
    running = ", ".join(stage.name for stage in found.stages if stage.state == "running")
    if running != said and running and not console.is_terminal:
        console.print(f"{found.run_id}: {running}")
    return running
