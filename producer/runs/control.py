"""What an operator does to a run: pause, resume, cancel, retry, check again, accept."""

from __future__ import annotations

import functools
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, text

from models.engine import current
from models.engine.live.capture import Release
from models.engine.live.cutover import SettleAgain
from models.engine.retry import Keys
from models.engine.step import Context, Counts, add, only_written
from models.errors import NotAllowed
from models.ledger import audit, relations, sums, tables
from models.ledger.claims import MAX_LEASE_EXPIRIES
from models.ledger.tables import (
    FINISH,
    RECONCILIATION,
    VERIFICATION,
    batches,
    differences,
    move_batches,
    move_run,
    runs,
    stages,
)
from models.postgres.database import transaction
from models.reports.run import RunReport
from models.settings import Settings
from producer.reports import status
from producer.runs import advance, budget
from producer.runs import retry as retried
from producer.runs.standing import LET_IT_END
from producer.runs.windows import CUT

# Keys a batch when rows are tried again: they are few, and scattered over the table.
RETRY_KEYS = 500
_FORGET_COUNTS = text(
    "UPDATE migration.batches SET counts = counts - 'differences' - 'unaccounted'"
    " WHERE run_id = :run_id AND stage = 'finish' AND counts ?| '{differences,unaccounted}'"
)


def pause(engine: Engine, run_id: str | None) -> str:
    """Let no further batch start; those under way end. Returns the run's id."""
    by, at = " from ".join(audit.who()), sa.func.clock_timestamp()
    return _move(engine, run_id, "pause", "paused", paused_by=by, paused_at=at)


def resume(engine: Engine, settings: Settings, run_id: str | None) -> str:
    """Resume a paused or cancelled run; its failed batches are tried again."""
    with transaction(engine) as connection:
        run = status.find_run(connection, run_id)
        if run.state not in ("paused", "cancelled"):
            raise NotAllowed(
                f"Run {run.id} is {run.state}: there is nothing to resume",
                hint="See: producer status",
            )
        relations.adopt(connection, run, settings)
        _require_no_other(connection, run)
        _resume(connection, run)
        audit.note(connection, "resume", run.id, before={"state": run.state})
    advance.begin(engine, settings, run.id)
    return str(run.id)


def cancel(engine: Engine, run_id: str | None) -> str:
    """Stop a run for good, unless it is resumed; what it wrote stays and is consistent."""
    return _move(engine, run_id, "cancel", "cancelled", paused_by=None, paused_at=None, error=None)


def require_move(found: RunReport, to: str) -> None:
    """Raise NotAllowed where a run's state does not allow the other one."""
    if (found.state, to) not in tables.RUN_TRANSITIONS:
        raise NotAllowed(
            f"Run {found.run_id} is {found.state}: it cannot become {to}",
            hint="See: producer status",
        )


def retry(engine: Engine, settings: Settings, run_id: str | None) -> str:
    """Try failed batches and open quarantine rows again, then verify, reconcile and finish.

    Only those: a quarantined row because of its owner comes with the owner. A run that its error
    budget has paused continues, its failed batches included. Raises NotAllowed for any
    other that is not over.
    """
    with transaction(engine) as connection:
        run = status.find_run(connection, run_id)
        if is_spent := run.paused_by == budget.PAUSED_BY:
            relations.adopt(connection, run, settings)
            _resume(connection, run)
            audit.note(connection, "retry", run.id, before={"state": run.state})
    if is_spent:
        advance.begin(engine, settings, run.id)
        return str(run.id)
    with transaction(engine) as connection:
        run = _reopen(connection, run_id, "retry")
        relations.adopt(connection, run, settings)
        _reopen_capture(connection, run)
        context = Context.read(connection, settings, run)
        _reopen_failed(connection, run.id)
        for keys in retried.read(context):
            _insert_keys(connection, run.id, keys)
        _continue_from_pending(connection, run.id)
    advance.begin(engine, settings, run.id)
    return str(run.id)


def retry_batch(engine: Engine, settings: Settings, run_id: str, batch_id: int) -> str:
    """Try one failed batch again, of a run that is worked on or has failed; the others stay failed.

    Raises NotAllowed for a batch that is not failed, and for a run that is paused or cancelled:
    its failed batches are tried again when it is resumed.
    """
    with transaction(engine) as connection:
        run = status.find_run(connection, run_id)
        # In turn with what would fail the run for this batch.
        state = connection.scalar(
            sa.select(runs.c.state).where(runs.c.id == run.id).with_for_update()
        )
        relations.adopt(connection, run, settings)
        is_over = state not in tables.WORKED_ON
        if is_over:
            run = _reopen(connection, run.id, "retry", after={"batch": batch_id})
            _reopen_capture(connection, run)
        else:
            audit.note(connection, "retry", run.id, after={"batch": batch_id})
        if not _reopen_failed(connection, run.id, batches.c.id == batch_id):
            raise NotAllowed(
                f"Batch {batch_id} of run {run.id} is not failed", hint="See: producer status"
            )
        if is_over:
            _continue_from_pending(connection, run.id)
    advance.begin(engine, settings, run.id)
    return str(run.id)


def _continue_from_pending(connection: Connection, run_id: str) -> None:
    """Reopen the stages that have batches to do, and start over all that comes after them."""
    with_batches = sa.select(batches.c.stage).where(
        batches.c.run_id == run_id, batches.c.state == "pending"
    )
    advance.reopen_stages(connection, run_id, stages.c.name.in_(with_batches))
    _check_all(connection, run_id)


def _check_all(connection: Connection, run_id: str) -> None:
    """Start over all that comes after the pages.

    Rows that pass now go through the replay's stage like all others: its pages are few, and a page
    with nothing to do costs one index scan.
    """
    _restart(
        connection, run_id, (current.migration().replay_stage, VERIFICATION, RECONCILIATION, FINISH)
    )


def check_again(engine: Engine, settings: Settings, run_id: str | None, stage: str) -> str:
    """Run the verification or the reconciliation of a finished run again.

    Raises NotAllowed where the migration has no such stage, or the run did not get there.
    """
    if stage not in current.migration().stages:
        raise NotAllowed(
            f"The migration {current.migration().name} has no {stage}",
            hint="Its verification compares every row: producer verify --wait",
        )
    with transaction(engine) as connection:
        run = _reopen(connection, run_id, stage)
        relations.adopt(connection, run, settings)
        of_run = advance.read_stages(connection, run)
        position = next(row.position for row in of_run if row.name == stage)
        left = [row for row in of_run if row.state != "done"]
        if any(row.position < position for row in left):
            raise NotAllowed(
                f"Run {run.id} did not get as far as the {stage}", hint="Run: producer retry --wait"
            )
        # The other check starts over too where it did not end: a failed batch would fail the run.
        unchecked = [row.name for row in left if row.position == position]
        _restart(connection, run.id, (stage, *unchecked))
    advance.begin(engine, settings, run.id)
    return str(run.id)


def _resume(connection: Connection, run: sa.Row[tuple[object, ...]]) -> None:
    _leave_out_idle(connection, run)
    move_run(connection, run.id, "running", paused_by=None, paused_at=None, error=None)
    _reopen_failed(connection, run.id)
    # The messages of the batches that wait were spent on finding the run paused.
    connection.execute(
        sa.update(batches)
        .where(batches.c.run_id == run.id, batches.c.state == "pending")
        .values(published_at=None)
    )
    _watch_again(connection, run)


def _watch_again(connection: Connection, run: sa.Row[tuple[Any, ...]]) -> None:
    """Let the triggers be put back, and what was judged while one was missing be judged anew."""
    of_finish = stages.c.run_id == run.id, stages.c.name == FINISH
    finish = connection.execute(sa.select(stages.c.state, stages.c.step).where(*of_finish)).one()
    if finish.state == "done":
        # Only a check of it was stopped, and during that nobody watches.
        return
    is_released = _is_released(connection, run.id)
    if (is_released or run.state == "cancelled") and _reopen_capture(connection, run):
        _check_all(connection, run.id)
    elif finish.step in _steps_past_the_last_lock():
        _restart(connection, run.id, (FINISH,))


def _is_released(connection: Connection, run_id: str) -> bool:
    """Whether the triggers were taken from a table at the end of the run, perhaps not from all."""
    is_any = sa.exists().where(
        batches.c.run_id == run_id,
        batches.c.stage == FINISH,
        batches.c.step == Release.name,
        batches.c.state == "done",
    )
    return bool(connection.scalar(sa.select(is_any)))


def _steps_past_the_last_lock() -> tuple[str, ...]:
    """Where the finish no longer replays what was written while it waited."""
    names = [step.name for step in current.migration().steps_of(FINISH)]
    return (*names[names.index(SettleAgain.name) + 1 :], CUT)


def _leave_out_idle(connection: Connection, run: sa.Row[tuple[Any, ...]]) -> None:
    """A stage in the middle took no time while nobody worked on the run."""
    stopped = run.paused_at if run.state == "paused" else run.finished_at
    if stopped is None:
        return
    idle = sa.func.clock_timestamp() - stopped
    connection.execute(
        sa.update(stages)
        .where(stages.c.run_id == run.id, stages.c.state == "running")
        .values(started_at=stages.c.started_at + idle)
    )


def _reopen_failed(connection: Connection, run_id: object, *which: sa.ColumnElement[bool]) -> int:
    """Let failed batches wait again; returns how many."""
    return connection.execute(
        move_batches("pending", error=None, lapses=0, hand_backs=0, published_at=None).where(
            batches.c.run_id == run_id, batches.c.state == "failed", *which
        )
    ).rowcount


def _move(engine: Engine, run_id: str | None, action: str, state: str, **values: object) -> str:
    with transaction(engine) as connection:
        run = status.find_run(connection, run_id)
        left = move_run(connection, run.id, state, **values)
        audit.note(connection, action, run.id, before={"state": left}, after={"state": state})
        return str(run.id)


def _reopen(
    connection: Connection, run_id: str | None, what: str, after: object = None
) -> sa.Row[tuple[object, ...]]:
    run: sa.Row[tuple[object, ...]] = status.find_run(connection, run_id)
    if status.has_rollback_begun(connection, run.id):
        raise NotAllowed(
            f"Run {run.id} is {run.state}, its rollback has begun: there is no {what} of it",
            hint="Finish the rollback: producer rollback --wait. Migrate again: producer"
            " enqueue-all --wait",
        )
    if run.state not in tables.FINISHED_STATES or run.state == "cancelled":
        raise NotAllowed(
            f"Run {run.id} is {run.state}: {what} is for a run that has ended",
            hint="Resume it, or wait for its end (producer status --watch). Then try again.",
        )
    _require_no_other(connection, run)
    _leave_out_idle(connection, run)
    move_run(connection, run.id, "running", error=None)
    audit.note(connection, what, run.id, before={"state": run.state}, after=after)
    return run


def _require_no_other(connection: Connection, run: Any) -> None:
    other = connection.scalar(
        sa.select(runs.c.id).where(
            runs.c.state.in_((*tables.OPEN_STATES, "rolling_back")), runs.c.id != run.id
        )
    )
    if other:
        raise NotAllowed(f"Run {other} is open", hint=LET_IT_END)
    later = sa.select(runs.c.id).where(
        runs.c.id > run.id, runs.c.selection.is_(None), runs.c.state != "rolled_back"
    )
    if run.selection is not None and (full := connection.scalar(later.limit(1))):
        raise NotAllowed(
            f"Run {full} of all rows has come since the canary {run.id}",
            hint=f"Continue with that one, such as: producer retry {full} --wait",
        )


def _reopen_capture(connection: Connection, run: sa.Row[tuple[object, ...]]) -> bool:
    """Let the triggers be put back, which the end of this run, or of a later one, took away.

    Since then nobody has watched what the application does. Also where the run failed after its
    end, by a check of what the new application has changed since. True if so.
    """
    is_over = run.state in tables.COMPLETED_STATES or _is_released(connection, run.id)
    later = sa.select(runs.c.id).where(runs.c.id > run.id)
    is_unwatched = is_over or connection.scalar(later.limit(1)) is not None
    if is_unwatched:
        connection.execute(sa.update(runs).where(runs.c.id == run.id).values(handed_over=True))
    _insert_keys(connection, run.id, retried.capture())
    advance.reopen_stages(connection, run.id, stages.c.name == retried.capture().stage)
    return is_unwatched


def _insert_keys(connection: Connection, run_id: str, found: Keys) -> None:
    """Batches of no window for these keys; what killed its workers goes alone."""
    rest = [key for key in found.keys if key not in found.suspects]
    lists = [rest[start : start + RETRY_KEYS] for start in range(0, len(rest), RETRY_KEYS)]
    for keys in (*lists, *([key] for key in sorted(found.suspects))):
        connection.execute(
            sa.insert(batches).values(
                run_id=run_id,
                stage=found.stage,
                step=found.step,
                window=0,
                key_list=keys,
                rows=len(keys),
                lapses=MAX_LEASE_EXPIRIES - 1 if keys[0] in found.suspects else 0,
            )
        )


def _restart(connection: Connection, run_id: str, names: tuple[str, ...]) -> None:
    """Let stages start over: their batches go, and what they found, not what they wrote."""
    mine = (batches.c.run_id == run_id, batches.c.stage.in_(names))
    gone = connection.scalars(sa.delete(batches).where(*mine).returning(batches.c.counts))
    nothing: Counts = {}
    written = functools.reduce(add, map(only_written, gone), nothing)
    if written:
        step = current.migration().steps_of(names[0])[0].name
        connection.execute(
            sa.insert(batches).values(
                run_id=run_id, stage=names[0], step=step, window=0, state="done", counts=written
            )
        )
    sums.forget(connection, run_id, (*names, FINISH))
    connection.execute(
        sa.delete(differences).where(differences.c.run_id == run_id, differences.c.stage.in_(names))
    )
    if VERIFICATION in names:
        # The finish lists what it finds as the verification's, which is found anew.
        connection.execute(_FORGET_COUNTS, {"run_id": run_id})
    connection.execute(
        sa.update(stages)
        .where(stages.c.run_id == run_id, stages.c.name.in_(names))
        .values(
            state="pending", step=None, last_key=None, window=0, started_at=None, finished_at=None
        )
    )
