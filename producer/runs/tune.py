"""Changes what an open run was started with: batch size, throttle limits, window.

The values are kept with the run, so that every worker takes them up: limits and window before its
next batch, the batch size when the next window of batches is cut.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Engine

from models.errors import Misconfigured, NotAllowed
from models.ledger import audit
from models.ledger.tables import FINISHED_STATES, runs
from models.postgres.database import transaction
from models.postgres.load import parse_limits
from models.settings import MAX_BATCH_SIZE
from models.window import parse as parse_window
from producer.reports import status

# As the settings of each worker say; and no window at all.
DEFAULT, ALWAYS = "default", "always"


def tune(
    engine: Engine,
    run_id: str | None,
    *,
    batch_size: str | None = None,
    throttle: str | None = None,
    window: str | None = None,
) -> dict[str, str | None]:
    """Change what is given; returns the run's values, null where each worker's settings count.

    Raises Misconfigured for a value that cannot be, NotAllowed for a run that is over.
    """
    wanted: dict[str, str | None] = {}
    if batch_size is not None:
        wanted["batch_size"] = _batch_size(batch_size)
    if throttle is not None:
        wanted["throttle"] = None if throttle == DEFAULT else _throttle(throttle)
    if window is not None:
        wanted["hours"] = None if window == DEFAULT else _window(window)
    with transaction(engine) as connection:
        run = status.find_run(connection, run_id)
        # Locked: its state and its values are those that the audit notes.
        run = connection.execute(sa.select(runs).where(runs.c.id == run.id).with_for_update()).one()
        if run.state in FINISHED_STATES:
            raise NotAllowed(
                f"Run {run.id} is {run.state}: only an open run can be tuned",
                hint="For the next run, set MIGRATION_BATCH_SIZE, MIGRATION_THROTTLE and"
                " MIGRATION_WINDOW.",
            )
        before = {name: getattr(run, name) for name in ("batch_size", "throttle", "hours")}
        if wanted:
            connection.execute(sa.update(runs).where(runs.c.id == run.id).values(**wanted))
            changed = {name: before[name] for name in wanted}
            audit.note(connection, "tune", run.id, before=changed, after=wanted)
        found = before | wanted
        return {
            "run_id": run.id,
            "batch_size": found["batch_size"],
            "throttle": found["throttle"],
            "window": found["hours"],
        }


def _batch_size(text: str) -> str:
    if text == "auto" or (text.isdecimal() and 1 <= int(text) <= MAX_BATCH_SIZE):
        return text
    raise Misconfigured(
        f"--batch-size: {text} is neither auto nor a whole number from 1 to {MAX_BATCH_SIZE}",
        hint="For example: --batch-size 500",
    )


def _throttle(text: str) -> str:
    try:
        parse_limits(text)
    except ValueError as refused:
        raise Misconfigured(
            f"--throttle: {refused}", hint="For example: --throttle lag=30,commit=off"
        ) from None
    return text


def _window(text: str) -> str:
    """The same text; "" for no window."""
    if text == ALWAYS:
        return ""
    try:
        found = parse_window(text)
    except ValueError as refused:
        raise Misconfigured(
            f"--window: {refused}", hint=f"Or: --window {ALWAYS}, --window {DEFAULT}"
        ) from None
    return str(found) if found else ""
