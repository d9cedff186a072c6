"""What may happen to a batch: claimed with a lease, renewed, completed, failed, handed back.

A claim raises the attempt number, and every later write stands on that number: a worker that
comes back after its lease expired finds it raised, and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from models.errors import LeaseLost
from models.ledger import RECONCILIATION, VERIFICATION, batches, runs, stages
from models.steps.base import Counts, Scope

LEASE_SECONDS = 20
# A batch whose worker died this often is not given to another one.
MAX_ATTEMPTS = 5


@dataclass(frozen=True)
class Claim:
    """A claimed batch: what it covers, and the attempt that its commit stands on."""

    run_id: str
    batch_id: int
    stage: str
    step: str
    attempt: int
    scope: Scope


def lease_end() -> sa.ColumnElement[Any]:
    """The end of a lease that starts now, by the database's clock."""
    return sa.func.clock_timestamp() + sa.text(f"interval '{LEASE_SECONDS} seconds'")


def is_expired() -> sa.ColumnElement[bool]:
    """Condition on `batches`: claimed, and the lease ran out by the database's clock."""
    return sa.and_(batches.c.state == "running", batches.c.lease_until < sa.func.clock_timestamp())


def was_tried_often() -> sa.ColumnElement[bool]:
    """Condition on `batches`: no further attempt, unless an operator retries it."""
    return batches.c.attempt - batches.c.retried_at >= MAX_ATTEMPTS


def claim(connection: Connection, run_id: str, batch_id: int, worker: str) -> Claim | None:
    """Claim a batch that waits, or whose lease expired; None when it is not to be had.

    It is not to be had while an earlier stage is open, or when the run is paused or over.

    Counts on the primary key of `batches`, and on the row lock of the UPDATE: of two workers at
    the same moment the second one finds the state changed.
    """
    mine, earlier = stages.alias("mine"), stages.alias("earlier")
    is_early = sa.exists().where(
        mine.c.run_id == batches.c.run_id,
        mine.c.name == batches.c.stage,
        earlier.c.run_id == batches.c.run_id,
        earlier.c.position < mine.c.position,
        earlier.c.state != "done",
        sa.not_(sa.and_(mine.c.name == RECONCILIATION, earlier.c.name == VERIFICATION)),
    )
    row = connection.execute(
        sa.update(batches)
        .where(
            batches.c.id == batch_id,
            batches.c.run_id == run_id,
            runs.c.id == batches.c.run_id,
            runs.c.state.in_(("preparing", "running")),
            ~is_early,
            sa.or_(batches.c.state == "pending", is_expired()),
        )
        .values(
            state="running",
            attempt=batches.c.attempt + 1,
            worker=worker,
            lease_until=lease_end(),
            started_at=sa.func.clock_timestamp(),
            error=None,
        )
        .returning(batches)
    ).one_or_none()
    if row is None:
        return None
    keys = tuple(row.key_list) if row.key_list is not None else None
    return Claim(run_id, batch_id, row.stage, row.step, row.attempt, Scope(row.low, row.high, keys))


def renew(connection: Connection, claim: Claim) -> None:
    """Extend the lease from now; raises LeaseLost when the batch is somebody else's."""
    _change(connection, claim, lease_until=lease_end())


def complete(connection: Connection, claim: Claim, counts: Counts) -> None:
    """Mark the batch done, in the transaction of its rows; raises LeaseLost when it is not ours."""
    _change(
        connection,
        claim,
        state="done",
        counts=counts,
        lease_until=None,
        finished_at=sa.func.clock_timestamp(),
    )


def fail(connection: Connection, claim: Claim, error: str) -> None:
    """Mark the batch failed for good; raises LeaseLost when it is not ours."""
    _change(
        connection,
        claim,
        state="failed",
        error=error,
        lease_until=None,
        finished_at=sa.func.clock_timestamp(),
    )


def hand_back(connection: Connection, claim: Claim, error: str) -> None:
    """Let somebody else have the batch, unless that was done too often: then it fails.

    Raises LeaseLost when it is not ours.
    """
    _change(
        connection,
        claim,
        state=sa.case((was_tried_often(), "failed"), else_="pending"),
        error=error,
        lease_until=None,
        published_at=None,
    )


def _change(connection: Connection, claim: Claim, **values: Any) -> None:
    changed = connection.execute(
        sa.update(batches)
        .where(
            batches.c.id == claim.batch_id,
            batches.c.attempt == claim.attempt,
            batches.c.state == "running",
        )
        .values(**values)
    )
    if changed.rowcount != 1:
        raise LeaseLost(f"Batch {claim.batch_id}: attempt {claim.attempt} no longer stands")
