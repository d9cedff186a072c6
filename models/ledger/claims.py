"""What may happen to a batch: claimed with a lease, renewed, completed, failed, released.

A claim raises the attempt number, and every later write stands on that number: a worker that
comes back after its lease expired finds it raised, and changes nothing.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from models.engine.step import Counts, Scope, add
from models.errors import LeaseLost
from models.ledger import relations
from models.ledger.relations import Here
from models.ledger.tables import WORKED_ON, batches, move_batches, runs, stages
from models.settings import Settings

LEASE_SECONDS = 20
# After so many leases that ran out a batch is split, so that what kills its workers is found.
MAX_LEASE_EXPIRIES = 3
# After being released so often it fails: what it waits for does not pass.
MAX_HAND_BACKS = 5


@dataclass(frozen=True)
class Claim:
    """A claimed batch: what it covers, and the attempt that its commit stands on."""

    run_id: str
    batch_id: int
    stage: str
    step: str
    attempt: int
    scope: Scope
    # The run and the tables, as the claim's own statement found them.
    seen: tuple[Any, Here] | None = field(default=None, repr=False, compare=False)


def lease_end() -> sa.ColumnElement[Any]:
    """The end of a lease that starts now, by the database's clock."""
    return sa.func.clock_timestamp() + sa.text(f"interval '{LEASE_SECONDS} seconds'")


def is_expired() -> sa.ColumnElement[bool]:
    """Condition on `batches`: claimed, and the lease ran out by the database's clock."""
    return sa.and_(batches.c.state == "running", batches.c.lease_until < sa.func.clock_timestamp())


def expires_too_often() -> sa.ColumnElement[bool]:
    """Condition on `batches` with an expired lease: it is to be split, not tried again."""
    return batches.c.lapses + 1 >= MAX_LEASE_EXPIRIES


def claim(
    connection: Connection,
    run_id: str,
    batch_id: int,
    worker: str,
    settings: Settings | None = None,
) -> Claim | None:
    """Claim a batch that waits, or whose lease expired; None when it cannot be claimed.

    It cannot be claimed while an earlier stage is open, or when the run is paused or over. With
    settings, the claim tells what was `seen`.

    Counts on the primary key of `batches`, and on the row lock of the UPDATE: of two workers at
    the same moment the second one finds the state changed.
    """
    values = {"wanted": batch_id, "of_run": run_id, "by": worker}
    columns, read = relations.beside_run(settings) if settings else ([], None)
    row = connection.execute(_claiming().returning(*columns), values).one_or_none()
    if row is None:
        return None
    scope, seen = scope_of(row._mapping), read(row) if read else None
    return Claim(run_id, batch_id, row.stage, row.step, row.attempt, scope, seen)


@functools.cache
def _claiming() -> sa.sql.dml.ReturningUpdate[Any]:
    """The statement that claims the batch :wanted of the run :of_run. Built once a process."""
    mine, earlier = stages.alias("mine"), stages.alias("earlier")
    is_early = sa.exists().where(
        mine.c.run_id == batches.c.run_id,
        mine.c.name == batches.c.stage,
        earlier.c.run_id == batches.c.run_id,
        # A run that is rolled back may have stages that never ended.
        earlier.c.direction == mine.c.direction,
        earlier.c.position < mine.c.position,
        earlier.c.state != "done",
    )
    return (
        move_batches(
            "running",
            attempt=batches.c.attempt + 1,
            lapses=batches.c.lapses + sa.case((is_expired(), 1), else_=0),
            expiries=batches.c.expiries + sa.case((is_expired(), 1), else_=0),
            worker=sa.bindparam("by"),
            lease_until=lease_end(),
            started_at=sa.func.clock_timestamp(),
            error=None,
        )
        .where(
            batches.c.id == sa.bindparam("wanted"),
            batches.c.run_id == sa.bindparam("of_run"),
            runs.c.id == batches.c.run_id,
            runs.c.state.in_(WORKED_ON),
            ~is_early,
            sa.or_(batches.c.state == "pending", sa.and_(is_expired(), ~expires_too_often())),
        )
        .returning(batches)
    )


def scope_of(row: Any) -> Scope:
    """What a batch, a row of the ledger, covers."""
    keys, parts = (None if row[n] is None else tuple(row[n]) for n in ("key_list", "part_list"))
    return Scope(row["low"], row["high"], keys, parts, again=keys is not None)


def renew(connection: Connection, claim: Claim) -> None:
    """Extend the lease from now; raises LeaseLost when the batch is somebody else's."""
    _require(connection, claim, sa.update(batches).values(lease_until=lease_end()))


def record(connection: Connection, claim: Claim, counts: Counts) -> Counts:
    """Add to what a batch of several transactions has counted; returns the sum.

    Raises LeaseLost when the batch is somebody else's.
    """
    before = connection.scalar(sa.select(batches.c.counts).where(batches.c.id == claim.batch_id))
    total = add(before or {}, counts)
    _require(connection, claim, sa.update(batches).values(counts=total))
    return total


def complete(connection: Connection, claim: Claim, counts: Counts) -> None:
    """Mark the batch done, in the transaction of its rows; raises LeaseLost when it is not ours."""
    _require(connection, claim, move_batches("done", counts=counts))


def fail(connection: Connection, claim: Claim, error: str) -> None:
    """Mark the batch failed for good; raises LeaseLost when it is not ours."""
    _require(connection, claim, move_batches("failed", error=error))


def hand_back(connection: Connection, claim: Claim, error: str) -> None:
    """Let somebody else have the batch, unless that was done too often: then it fails.

    Raises LeaseLost when it is not ours.
    """
    too_often = batches.c.hand_backs + 1 >= MAX_HAND_BACKS
    if not _change(connection, claim, move_batches("failed", error=error).where(too_often)):
        back = batches.c.hand_backs + 1
        _require(connection, claim, _to_waiting(error, hand_backs=back))


def release(connection: Connection, claim: Claim, error: str) -> None:
    """The same because this worker has to stop, which is not held against the batch."""
    _require(connection, claim, _to_waiting(error))


def _to_waiting(error: str, **values: Any) -> sa.Update:
    return move_batches("pending", error=error, published_at=None, **values)


def _require(connection: Connection, claim: Claim, statement: sa.Update) -> None:
    if not _change(connection, claim, statement):
        raise LeaseLost(f"Batch {claim.batch_id}: attempt {claim.attempt} no longer stands")


def _change(connection: Connection, claim: Claim, statement: sa.Update) -> bool:
    changed = connection.execute(
        statement.where(
            batches.c.id == claim.batch_id,
            batches.c.attempt == claim.attempt,
            batches.c.state == "running",
        )
    )
    return changed.rowcount == 1
