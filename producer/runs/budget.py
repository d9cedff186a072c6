"""The error budget: batches that fail with one and the same error pause the run, by the cause."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Connection

from models.ledger.tables import batches, move_run, runs
from models.settings import Settings

PAUSED_BY = "error budget"
# A rollback has no pause: it ends as failed.
_HAS_BUDGET = ("preparing", "running")


def enforce(connection: Connection, settings: Settings, run_id: str) -> bool:
    """Pause the run when its budget is spent; whether it did.

    Under the lock on the run, so that of several that come at once one pauses it.
    """
    state = connection.scalar(sa.select(runs.c.state).where(runs.c.id == run_id).with_for_update())
    if state not in _HAS_BUDGET:
        return False
    failed = sa.func.count().label("failed")
    worst = connection.execute(
        sa.select(batches.c.error, failed, sa.func.min(batches.c.stage).label("stage"))
        .where(batches.c.run_id == run_id, batches.c.state == "failed")
        .group_by(batches.c.error)
        .order_by(failed.desc())
        .limit(1)
    ).one_or_none()
    if worst is None or worst.failed < settings.error_budget:
        return False
    many = f"{worst.failed} batches" if worst.failed > 1 else "1 batch"
    move_run(
        connection,
        run_id,
        "paused",
        paused_by=PAUSED_BY,
        paused_at=sa.func.clock_timestamp(),
        error=f"{many} failed with the same error. {worst.stage}: {worst.error}",
    )
    return True
