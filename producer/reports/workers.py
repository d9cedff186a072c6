"""What happens in an open run: its workers, and the reconciler's last word."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql import distinct_on

from models.ledger import sums
from models.ledger.tables import batches, recoveries
from models.reports.run import Live, Recovery, WorkerProcess

# A worker without a batch for so long has ended, or has nothing to do here.
GONE_SECONDS = sums.RECENT_SECONDS
MOST_HANDS = 50


def read(connection: Connection, run_id: str) -> Live:
    """Look at a run's batches."""
    return Live(
        hands=_hands(connection, run_id),
        recovery=_last_recovery(connection, run_id),
    )


def _hands(connection: Connection, run_id: str) -> list[WorkerProcess]:
    """The worker processes that hold a batch, or held one a moment ago, by name."""
    now = sa.func.clock_timestamp()
    # A process holds one batch; one that it lost and that nobody has claimed yet is the older one.
    held = (
        sa.select(
            *(batches.c.worker, batches.c.id, batches.c.stage, batches.c.attempt),
            sa.extract("epoch", now - batches.c.started_at).label("seconds"),
            sa.extract("epoch", batches.c.lease_until - now).label("lease"),
        )
        .where(batches.c.run_id == run_id, batches.c.state == "running")
        .ext(distinct_on(batches.c.worker))
        .order_by(batches.c.worker, batches.c.started_at.desc())
        .subquery()
    )
    of = sums.by_worker()
    last = sa.func.max(of.c.finished_at)
    worked = (
        sa.select(
            of.c.worker,
            sa.func.sum(of.c.batches).label("batches"),
            sa.func.sum(of.c.rows).label("rows"),
            sa.extract("epoch", now - last).label("idle"),
        )
        .group_by(of.c.worker)
        .having(
            sa.or_(
                last > now - sa.text(f"interval '{GONE_SECONDS} seconds'"),
                sa.func.bool_or(of.c.is_held),
            )
        )
        .subquery()
    )
    found = connection.execute(
        sa.select(worked, held.c.id, held.c.stage, held.c.attempt, held.c.seconds, held.c.lease)
        .outerjoin(held, held.c.worker == worked.c.worker)
        .order_by(held.c.id.is_(None), worked.c.worker)
        .limit(MOST_HANDS),
        {"of_run": run_id},
    )
    return [
        WorkerProcess(
            worker=row.worker,
            batches=row.batches,
            rows=row.rows,
            stage=row.stage,
            batch_id=row.id,
            attempt=row.attempt or 0,
            seconds=round(float((row.idle if row.id is None else row.seconds) or 0), 1),
            lease_seconds=None if row.lease is None else round(float(row.lease), 1),
        )
        for row in found
    ]


def _last_recovery(connection: Connection, run_id: str) -> Recovery | None:
    ago = sa.extract("epoch", sa.func.clock_timestamp() - recoveries.c.at)
    row = connection.execute(
        sa.select(recoveries.c.kind, recoveries.c.batches, ago.label("ago"))
        .where(recoveries.c.run_id == run_id)
        .order_by(recoveries.c.id.desc())
        .limit(1)
    ).one_or_none()
    if row is None:
        return None
    return Recovery(kind=row.kind, batches=row.batches, seconds_ago=round(float(row.ago), 1))
