"""One batch, top to bottom. START HERE for the engine.

Claim it; do it in one transaction together with its state in the ledger; retry what is
transient; leave what is bad to `bisect`, which finds the row and quarantines it.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import structlog
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from models.engine import current
from models.engine.step import Context, Counts, Step, add
from models.errors import BadRow, LeaseLost, MigrationError, OtherTables, Stopped, Transient
from models.ledger import claims, relations
from models.ledger.claims import Claim
from models.ledger.relations import Here
from models.ledger.tables import RECONCILIATION, VERIFICATION
from models.postgres import sessions
from models.postgres.database import as_ours, classify, transaction
from models.settings import Settings
from producer.broker import namespace
from producer.runs import budget, poison
from worker import bisect, cutover, shutdown
from worker.lease import Watch

MAX_RETRIES = 6
# Commits do not wait for the disk: a crash of the server loses the last commits whole, rows and
# ledger alike, and their batches are claimed again. Closing a stage waits for the disk, and so for
# all commits before it.
UNHURRIED = "SET LOCAL synchronous_commit = off"
# A worker that sees other tables is not to go through the queue meanwhile.
STRANGER_SECONDS = 1.0
log = structlog.get_logger("migration.batch")
# What was read in the catalog may be so old: a repeated stage finds what an operator changed.
CATALOG_SECONDS = 10.0
_catalogs: dict[tuple[object, ...], tuple[float, Context]] = {}


def run(
    engine: Engine, settings: Settings, run_id: str, batch_id: int, worker: str
) -> dict[str, str]:
    """Do one batch, if it can be claimed; returns {"outcome": …}: skipped, done, lost or failed.

    Safe to call for any id, any number of times, at the same time: the claim decides.
    """
    claim = _claim(engine, settings, run_id, batch_id, worker)
    if claim is None:
        return {"outcome": "skipped"}
    logger = log.bind(run=run_id, batch=batch_id, step=claim.step, attempt=claim.attempt)
    started = time.monotonic()
    try:
        with Watch(engine, claim) as watch:
            counts = _with_retries(engine, settings, claim, watch)
    except LeaseLost:
        logger.warning("lease lost")
        return {"outcome": "lost"}
    except OtherTables as error:
        logger.warning("batch left to other workers", error=error.message)
        ended = _give_up(engine, claim, claims.release, error.message)
        # Soon the reconciler's next round takes this worker from the queues.
        time.sleep(STRANGER_SECONDS)
        return ended
    except Stopped as error:
        logger.warning("batch released", error=error.message)
        return _give_up(engine, claim, claims.release, error.message)
    except Transient as error:
        logger.warning("batch released", error=error.message)
        return _give_up(engine, claim, claims.hand_back, error.message)
    except MigrationError as error:
        logger.error("batch failed", error=error.message)
        return _fail(engine, settings, claim, error.message)
    except Exception as bug:
        # The task's boundary: a mistake of ours fails the batch at once and by name.
        logger.exception("batch failed")
        return _fail(engine, settings, claim, f"a bug: {type(bug).__name__}")
    logger.info("batch done", seconds=round(time.monotonic() - started, 3), counts=counts)
    return {"outcome": "done"}


def _claim(
    engine: Engine, settings: Settings, run_id: str, batch_id: int, worker: str
) -> Claim | None:
    look: Settings | None = settings
    error: MigrationError | None = None
    for _ in range(3):
        try:
            with transaction(engine, also=UNHURRIED, is_single=True) as connection:
                return claims.claim(connection, run_id, batch_id, worker, look)
        except MigrationError as refused:
            error = refused
        except DBAPIError as failure:
            error = classify(failure)
            if failure.connection_invalidated:
                # A connection that was in use a moment ago is not asked whether it still works.
                continue
        if look is None or isinstance(error, Transient):
            break
        # What keeps the tables from being seen, the batch itself meets, and says.
        look = None
    log.warning("batch not claimed", batch=batch_id, error=error.message if error else "")
    return None


def _give_up(
    engine: Engine, claim: Claim, how: Callable[[Connection, Claim, str], None], error: str
) -> dict[str, str]:
    # Perhaps the tables are no longer as they were read.
    _catalogs.clear()
    try:
        with transaction(engine) as connection:
            how(connection, claim, error)
    except LeaseLost:
        return {"outcome": "lost"}
    except DBAPIError as failure:
        # The ledger cannot be reached: the lease will expire.
        log.warning("batch left alone", batch=claim.batch_id, error=classify(failure).message)
        return {"outcome": "lost"}
    return {"outcome": "failed"}


def _fail(engine: Engine, settings: Settings, claim: Claim, error: str) -> dict[str, str]:
    """Fail the batch, and pause the run if it is one too many."""
    outcome = _give_up(engine, claim, claims.fail, error)
    # Whatever stands in the way now, the next `advance` looks as well.
    with suppress(DBAPIError), transaction(engine) as connection:
        budget.enforce(connection, settings, claim.run_id)
    return outcome


def _with_retries(engine: Engine, settings: Settings, claim: Claim, watch: Watch) -> Counts:
    """Attempt the batch until it is done, or cannot be; back-off doubles, with jitter."""
    is_anew = False
    for retry in range(MAX_RETRIES + 1):
        try:
            with as_ours():
                return _attempt(engine, settings, claim, watch)
        except BadRow:
            if is_anew or not _may_be_newer(claim):
                raise
            is_anew = True
            _catalogs.clear()
        except Transient:
            shutdown.check()
            if retry == MAX_RETRIES:
                raise
            watch.sleep(0.2 * 2**retry * random.uniform(0.5, 1.0))
        # Perhaps on another server.
        claim = replace(claim, seen=None)
    raise AssertionError("unreachable")


def _may_be_newer(claim: Claim) -> bool:
    """Whether COMMIT may have refused a row for a constraint that is newer than the catalog."""
    is_one_commit = current.migration().step(claim.step).transactional
    return is_one_commit and any(not read.may_defer for _, read in _catalogs.values())


def _attempt(engine: Engine, settings: Settings, claim: Claim, watch: Watch) -> Counts:
    step = current.migration().step(claim.step)
    if claim.stage not in (VERIFICATION, RECONCILIATION) and not step.transactional:
        return _apply_outside(engine, settings, claim, step, watch)
    if step.is_cutover:
        # What the claim saw is too old for the last round.
        read = functools.partial(_context, settings=settings, claim=replace(claim, seen=None))
        return cutover.run(engine, read, claim, watch)
    # Rows, quarantine and state commit together; `complete` is the fence, and comes last.
    settled = f"{UNHURRIED}; {sessions.BATCH_PLANNING}"
    with transaction(engine, also=settled) as connection, watch.over(connection):
        context = _context(connection, settings, claim)
        if claim.stage in (VERIFICATION, RECONCILIATION):
            counts = bisect.check(context, claim.stage, step, claim.scope)
        else:
            take = cutover.take_up if step.is_late else bisect.apply
            counts = take(context, step, claim.scope)
            if claim.stage not in current.migration().undo_stages:
                step.resolve(context, claim.scope)
            poison.follow(connection, context, claim)
        claims.complete(connection, claim, counts)
    return counts


def _apply_outside(
    engine: Engine, settings: Settings, claim: Claim, step: Step, watch: Watch
) -> Counts:
    """For statements that PostgreSQL runs outside transactions only; the step is idempotent."""
    keys, counts = claim.scope.keys, Counts()
    with (
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
        sessions.outside(connection),
        watch.over(connection),
    ):
        for scope in [claim.scope.only([key]) for key in keys] if keys else [claim.scope]:
            # What is done here stays done: a worker that was frozen meanwhile must not go on.
            claims.renew(connection, claim)
            # Afresh: an index that the key before built is there.
            context = _context(connection, settings, claim)
            counts = add(counts, step.apply(context, scope))
    with transaction(engine) as connection:
        claims.complete(connection, claim, counts)
    return counts


def _context(connection: Connection, settings: Settings, claim: Claim) -> Context:
    """The context of a batch.

    Batches of the same turn, which may be two stages at a time, share what one of them has read in
    the catalog lately: in between, none of them changes it. That the tables are still those, the
    claim has just seen.
    """
    is_shared = claim.scope.keys is None or claim.stage in (VERIFICATION, RECONCILIATION)
    if is_shared and claim.seen and (context := _lately(settings, claim, *claim.seen)):
        return replace(context, connection=connection, batch_id=claim.batch_id)
    found = relations.read_run(connection, settings, claim.run_id)
    assert found is not None
    run, here = found
    _require(settings, run, here)
    context = Context.read(connection, settings, run, batch_id=claim.batch_id)
    if is_shared:
        _catalogs.clear()
        _catalogs[_turn(claim, run)] = time.monotonic(), context
    return context


def _lately(settings: Settings, claim: Claim, run: Any, here: Here) -> Context | None:
    """The context that a batch of the same turn has read, if that is not too long ago."""
    _require(settings, run, here)
    read_at, context = _catalogs.get(_turn(claim, run), (float("-inf"), None))
    return context if time.monotonic() - read_at <= CATALOG_SECONDS else None


def _require(settings: Settings, run: Any, here: Here) -> None:
    relations.require(run, settings, here)
    namespace.note(here.ledger_id)


def _turn(claim: Claim, run: Any) -> tuple[object, ...]:
    position = current.migration().stages.get(claim.stage, claim.stage)
    return run.id, position, run.handed_over, run.forced


def worker_name(hostname: str, pid: int) -> str:
    """How a worker process signs its claims."""
    return f"{hostname}/{pid}"
