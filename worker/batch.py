"""One batch, top to bottom. START HERE for the engine.

Claim it; do it in one transaction together with its state in the ledger; retry what is
transient; leave what is bad to `bisect`, which finds the row and sets it aside.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from types import TracebackType

import sqlalchemy as sa
import structlog
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from models import claims
from models.claims import LEASE_SECONDS, Claim
from models.database import as_ours, classify, transaction
from models.errors import LeaseLost, MigrationError, Misconfigured, Transient
from models.ledger import quarantine, runs
from models.settings import Settings
from models.steps import RECONCILIATION, VERIFICATION, by_name
from models.steps.base import Context, Counts, Step
from producer import enqueue, poison
from worker import bisect, settle

MAX_RETRIES = 6
WORK_MEM_MB = 32
# Where the database refuses this many rows and not one of the batch passes, it is not the rows.
WHOLESALE = 20
log = structlog.get_logger("migration.batch")


def run(
    engine: Engine, settings: Settings, run_id: str, batch_id: int, worker: str
) -> dict[str, str]:
    """Do one batch, if it is to be had; returns {"outcome": …}, one of skipped, done, lost, failed.

    Safe to call for any id, any number of times, at the same time: the claim decides.
    """
    with transaction(engine) as connection:
        claim = claims.claim(connection, run_id, batch_id, worker)
    if claim is None:
        return {"outcome": "skipped"}
    logger = log.bind(run=run_id, batch=batch_id, step=claim.step, attempt=claim.attempt)
    started = time.monotonic()
    try:
        with Heartbeat(engine, claim):
            counts = _with_retries(engine, settings, claim)
    except LeaseLost:
        logger.warning("lease lost")
        return {"outcome": "lost"}
    except Transient as error:
        logger.warning("batch handed back", error=error.message)
        return _give_up(engine, claim, claims.hand_back, error.message)
    except MigrationError as error:
        logger.error("batch failed", error=error.message)
        return _give_up(engine, claim, claims.fail, error.message)
    except Exception as bug:
        # The task's boundary: a mistake of ours fails the batch at once and by name.
        logger.exception("batch failed")
        return _give_up(engine, claim, claims.fail, f"a bug: {type(bug).__name__}")
    logger.info("batch done", seconds=round(time.monotonic() - started, 3), counts=counts)
    return {"outcome": "done"}


def _give_up(
    engine: Engine, claim: Claim, how: Callable[[Connection, Claim, str], None], error: str
) -> dict[str, str]:
    try:
        with transaction(engine) as connection:
            how(connection, claim, error)
    except LeaseLost:
        return {"outcome": "lost"}
    return {"outcome": "failed"}


class Heartbeat:
    """Renews the lease of a batch that takes longer than a third of it, from a thread.

    A worker that is frozen or dead stops renewing, and its batch goes to somebody else; a batch
    that only takes long is left in peace. A short batch never opens the second connection.
    """

    def __init__(self, engine: Engine, claim: Claim) -> None:
        self._engine, self._claim = engine, claim
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True, name="heartbeat")

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def _renew(self) -> None:
        while not self._over.wait(LEASE_SECONDS / 3):
            try:
                with transaction(self._engine) as connection:
                    claims.renew(connection, self._claim)
            except LeaseLost:
                return
            except DBAPIError as failure:
                log.warning("lease not renewed", error=classify(failure).message)


def _with_retries(engine: Engine, settings: Settings, claim: Claim) -> Counts:
    """Attempt the batch until it is done, or cannot be; back-off doubles, with jitter."""
    for retry in range(MAX_RETRIES + 1):
        try:
            with as_ours():
                return _attempt(engine, settings, claim)
        except Transient:
            if retry == MAX_RETRIES:
                raise
            time.sleep(0.2 * 2**retry * random.uniform(0.5, 1.0))
    raise AssertionError("unreachable")


def _attempt(engine: Engine, settings: Settings, claim: Claim) -> Counts:
    step = by_name(claim.step)
    if claim.stage not in (VERIFICATION, RECONCILIATION) and not step.transactional:
        return _apply_outside(engine, settings, claim, step)
    if step.is_settling:
        return settle.run(engine, lambda connection: _context(connection, settings, claim), claim)
    # Rows, quarantine and state commit together; `complete` is the fence, and comes last.
    with transaction(engine) as connection:
        # The statements pass a batch's rows through a dozen CTEs: without room they go over disk.
        connection.exec_driver_sql(f"SET LOCAL work_mem = '{WORK_MEM_MB}MB'")
        context = _context(connection, settings, claim)
        if claim.stage in (VERIFICATION, RECONCILIATION):
            counts = bisect.check(context, claim.stage, step, claim.scope)
        elif step.is_late:
            counts = settle.take_up(context, step, claim.scope)
        else:
            counts = bisect.apply(context, step, claim.scope)
            _refuse_wholesale(context, step, counts)
            poison.follow(connection, context, claim)
        claims.complete(connection, claim, counts)
    return counts


def _refuse_wholesale(context: Context, step: Step, counts: Counts) -> None:
    """Raise when the database refuses a large batch row by row: that is no matter of bad rows."""
    name = f"{step.entity}s"
    seen = counts.get(name, {})
    if not seen or seen["total"] > seen["quarantined"]:
        return
    refused = context.connection.execute(
        sa.select(sa.func.count(), sa.func.min(quarantine.c.message)).where(
            quarantine.c.batch_id == context.batch_id,
            quarantine.c.entity == step.entity,
            quarantine.c.reason == "rejected",
        )
    ).one()
    if refused[0] >= WHOLESALE:
        raise Misconfigured(f"Every row of the batch was refused. {refused[1]}")


def _apply_outside(engine: Engine, settings: Settings, claim: Claim, step: Step) -> Counts:
    """For statements that PostgreSQL runs outside transactions only; the step is idempotent."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        context = _context(connection, settings, claim)
        counts = step.apply(context, claim.scope)
    with transaction(engine) as connection:
        claims.complete(connection, claim, counts)
    return counts


def _context(connection: Connection, settings: Settings, claim: Claim) -> Context:
    run = connection.execute(sa.select(runs).where(runs.c.id == claim.run_id)).one()
    enqueue.require_same_tables(run, settings)
    return Context.read(connection, settings, run, batch_id=claim.batch_id)


def worker_name(hostname: str, pid: int) -> str:
    """How a worker process signs its claims."""
    return f"{hostname}/{pid}"
