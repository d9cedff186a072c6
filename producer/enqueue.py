"""Opening a run, and moving it on: the next window of a stage, the next stage, the end.

Everything here is safe to repeat and to call from anywhere at the same time: a chord's body, the
reconciler of every worker, every waiting command. The row lock on the run makes them take turns.
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine
from sqlalchemy.dialects.postgresql import insert

from models import ledger
from models.database import transaction
from models.errors import Misconfigured, NotAllowed
from models.ledger import batches, differences, move_run, quarantine, runs, stages
from models.settings import Settings
from models.steps import (
    FINISH,
    RECONCILIATION,
    STEPS,
    VERIFICATION,
    stage_names,
    stages_before,
    steps_of,
)
from models.steps.base import Context, Step
from producer import partition, retried
from producer.queue import Message, publish_window

# A stage's `step` once the last of its steps has been cut.
CUT = ""
_ANALYZE = (
    "ANALYZE migration.quarantine (entity, legacy_key, state),"
    " migration.before_images (entity, legacy_key, run_id),"
    " migration.changes (entity, legacy_key, owner_key)"
)
ID_TIME = "%Y%m%d-%H%M%S"


def open_run(engine: Engine, settings: Settings) -> tuple[str, bool]:
    """Open a run, or join the one that is open; returns its id and whether it is new."""
    with transaction(engine) as connection:
        run_id = _next_id(connection)
        opened = connection.scalar(
            insert(runs)
            .values(
                id=run_id,
                grants={name: str(amount) for name, amount in settings.credit_grants.items()},
                batch_size=str(settings.batch_size),
                tables=settings.tables,
                started_at=sa.func.clock_timestamp(),
            )
            .on_conflict_do_nothing()
            .returning(runs.c.id)
        )
        if opened is None:
            joined = _open_run_id(connection)
            # None: it ended between the two statements.
            return (str(joined), False) if joined else open_run(engine, settings)
        names = stage_names()
        connection.execute(
            sa.insert(stages),
            [{"run_id": run_id, "name": name, "position": i} for i, name in enumerate(names)],
        )
        run = connection.execute(sa.select(runs).where(runs.c.id == run_id)).one()
        context = Context.read(connection, settings, run)
        totals = {
            step.entity: partition.count_rows(connection, table)
            for step in STEPS
            if step.entity and (table := step.source(context))
        }
        # Where a foreign key makes orphans impossible, no step pages through the subscriptions.
        if "subscription" not in totals:
            totals["subscription"] = partition.count_rows(connection, context.legacy.subscriptions)
        connection.execute(sa.update(runs).where(runs.c.id == run_id).values(totals=totals))
        return run_id, True


def _next_id(connection: Connection) -> str:
    """An id that sorts behind those of all runs, also behind one of the same second."""
    moment = datetime.now(UTC).replace(microsecond=0, tzinfo=None)
    newest = connection.scalar(sa.select(sa.func.max(runs.c.id)))
    if newest:
        opened = datetime.strptime(newest.rpartition("-")[0], ID_TIME)
        moment = max(moment, opened + timedelta(seconds=1))
    return f"{moment:{ID_TIME}}-{secrets.token_hex(2)}"


def _open_run_id(connection: Connection) -> str | None:
    """The run that is open, if any; raises NotAllowed while one is being rolled back."""
    found = connection.execute(
        sa.select(runs.c.id, runs.c.state).where(
            runs.c.state.in_((*ledger.OPEN_STATES, "rolling_back"))
        )
    ).one_or_none()
    if found and found.state == "rolling_back":
        raise NotAllowed(
            f"Run {found.id} is being rolled back", hint="Wait for its end: producer status --watch"
        )
    return found.id if found else None


def advance(engine: Engine, settings: Settings, run_id: str) -> None:
    """Open whatever can be opened now, close what is complete, and publish the new batches.

    Does nothing while batches are open, and nothing to a run that is paused or over.
    """
    with transaction(engine) as connection:
        windows = _advance(connection, settings, run_id)
    for window in windows:
        publish_window(window)


def _advance(connection: Connection, settings: Settings, run_id: str) -> list[list[Message]]:
    run = connection.execute(
        sa.select(runs).where(runs.c.id == run_id).with_for_update()
    ).one_or_none()
    if run is None or run.state not in ("preparing", "running"):
        return []
    require_same_tables(run, settings)
    rows = connection.execute(sa.select(stages).where(stages.c.run_id == run_id)).all()
    state = {row.name: row.state for row in rows}
    context: Context | None = None
    windows: list[list[Message]] = []
    for row in sorted(rows, key=lambda row: row.position):
        if state[row.name] == "done" or any(
            state[name] != "done" for name in stages_before(row.name)
        ):
            continue
        if row.name == FINISH:
            if run.handed_over and row.step is None:
                context = context or Context.read(connection, settings, run)
                retried.take_up_differences(context)
            if _fail_on_differences(connection, run_id):
                return windows
        if _open_batches(connection, run_id, row.name):
            windows.append(_publish_waiting(connection, run_id, row.name))
            continue
        error = _failed_batch(connection, run_id, row.name)
        if error is not None:
            _set_stage(connection, row, state="failed", finished_at=sa.func.clock_timestamp())
            move_run(connection, run_id, "failed", error=f"{row.name}: {error}")
            return []
        if row.started_at is None:
            # New tables fill within minutes; taken for empty, they are looped over row by row.
            connection.exec_driver_sql(_ANALYZE)
        context = context or Context.read(connection, settings, run)
        window = _open_window(connection, context, run, row)
        if window:
            windows.append(window)
        else:
            state[row.name] = "done"
            _set_stage(connection, row, state="done", finished_at=sa.func.clock_timestamp())
    if windows and run.state == "preparing":
        move_run(connection, run_id, "running")
    over = all(value == "done" for value in state.values())
    if over and not _fail_on_differences(connection, run_id):
        _complete(connection, run_id, was=run.state)
    return windows


def require_same_tables(run: Any, settings: Settings) -> None:
    """Raise Misconfigured for a process that is set to other tables than the run migrates."""
    if run.tables != settings.tables:
        raise Misconfigured(
            f"The tables are set to {', '.join(settings.tables)},"
            f" but run {run.id} migrates {', '.join(run.tables)}",
            hint="Set MIGRATION_USERS_TABLE and its sisters as they were when the run was opened.",
        )


def _open_window(connection: Connection, context: Context, run: Any, stage: Any) -> list[Message]:
    """Cut the stage's next window into the ledger; [] when there is nothing left to cut."""
    steps = steps_of(stage.name)
    names = [step.name for step in steps]
    after = stage.last_key
    if stage.step == CUT:
        return []
    for step in steps[names.index(stage.step) if stage.step else 0 :]:
        found, after = _cut(connection, context, run, stage, step, after)
        if found:
            following = names.index(step.name) + 1
            next_step = names[following] if following < len(names) else CUT
            _set_stage(
                connection,
                stage,
                state="running",
                step=step.name if after is not None else next_step,
                last_key=after,
                window=stage.window + 1,
                started_at=sa.func.coalesce(stages.c.started_at, sa.func.clock_timestamp()),
            )
            return _insert(connection, stage, step, found)
    _set_stage(
        connection,
        stage,
        step=CUT,
        started_at=sa.func.coalesce(stages.c.started_at, sa.func.clock_timestamp()),
    )
    return []


def _cut(
    connection: Connection, context: Context, run: Any, stage: Any, step: Step, after: str | None
) -> tuple[list[dict[str, Any]], str | None]:
    """The next batches of one step, and the key to go on from (None: the step is cut)."""
    round_ = int(after) if after and after.isdecimal() else 0
    lists = step.key_lists(context, round_)
    if lists is not None:
        found = [{"key_list": keys, "rows": 0} for keys in lists]
        return found, str(round_ + 1) if found else None
    table = step.source(context)
    assert table is not None
    first = after is None
    rows = _batch_rows(connection, run, stage.name, step.name)
    pages = partition.window_pages(0 if first else stage.window)
    cut = partition.cut(connection, table, after=after, rows=rows, pages=pages)
    last = cut[-1].high if len(cut) == pages else None
    return [{"low": page.low, "high": page.high, "rows": page.rows} for page in cut], last


def _batch_rows(connection: Connection, run: Any, stage: str, step: str) -> int:
    """The size of the next window's batches: as set, or from how long the last ones took."""
    if run.batch_size != "auto":
        return int(run.batch_size)
    seconds = sa.extract("epoch", batches.c.finished_at - batches.c.started_at)
    recent = (
        sa.select(batches.c.rows, seconds.label("seconds"))
        .where(batches.c.run_id == run.id, batches.c.stage == stage, batches.c.step == step)
        .where(batches.c.state == "done", batches.c.low.is_not(None) | batches.c.high.is_not(None))
        .order_by(batches.c.id.desc())
        .limit(8)
        .subquery()
    )
    took = connection.execute(
        sa.select(sa.func.sum(recent.c.rows), sa.func.sum(recent.c.seconds), sa.func.count())
    ).one()
    if not took[2] or not took[0]:
        return partition.FIRST_ROWS
    return partition.next_rows(int(took[0] / took[2]), float(took[1]) / int(took[2]))


def _insert(
    connection: Connection, stage: Any, step: Step, found: list[dict[str, Any]]
) -> list[Message]:
    blank = {"low": None, "high": None, "key_list": None}
    ids = connection.scalars(
        sa.insert(batches)
        .values(published_at=sa.func.clock_timestamp())
        .returning(batches.c.id, sort_by_parameter_order=True),
        [
            {
                **blank,
                **values,
                "run_id": stage.run_id,
                "stage": stage.name,
                "step": step.name,
                "window": stage.window + 1,
            }
            for values in found
        ],
    ).all()
    return [Message(stage.run_id, batch_id, stage.name, step.name) for batch_id in ids]


def _set_stage(connection: Connection, stage: Any, **values: Any) -> None:
    connection.execute(
        sa.update(stages)
        .where(stages.c.run_id == stage.run_id, stages.c.name == stage.name)
        .values(**values)
    )


def _open_batches(connection: Connection, run_id: str, stage: str) -> bool:
    return bool(
        connection.scalar(
            sa.select(sa.true())
            .where(batches.c.run_id == run_id, batches.c.stage == stage)
            .where(batches.c.state.in_(("pending", "running")))
            .limit(1)
        )
    )


def _publish_waiting(connection: Connection, run_id: str, stage: str) -> list[Message]:
    """Batches of the stage that were never published, or handed back: a retry put them there."""
    taken = connection.execute(
        sa.update(batches)
        .where(batches.c.run_id == run_id, batches.c.stage == stage)
        .where(batches.c.state == "pending", batches.c.published_at.is_(None))
        .values(published_at=sa.func.clock_timestamp())
        .returning(batches.c.run_id, batches.c.id, batches.c.stage, batches.c.step)
    )
    return [Message(*row) for row in taken]


def _failed_batch(connection: Connection, run_id: str, stage: str) -> str | None:
    """The error of a failed batch of the stage, or None."""
    error: str | None = connection.scalar(
        sa.select(sa.func.coalesce(batches.c.error, "unknown"))
        .where(batches.c.run_id == run_id, batches.c.stage == stage, batches.c.state == "failed")
        .order_by(batches.c.id)
        .limit(1)
    )
    return error


def _fail_on_differences(connection: Connection, run_id: str) -> bool:
    """Before the finish: a run with an open difference fails instead. True when it did."""
    counted = connection.execute(
        sa.select(differences.c.stage, sa.func.count())
        .where(differences.c.run_id == run_id)
        .group_by(differences.c.stage)
    )
    found = {str(stage): int(count) for stage, count in counted}
    if not found:
        return False
    move_run(
        connection,
        run_id,
        "failed",
        error=f"{found.get(VERIFICATION, 0)} differences,"
        f" {found.get(RECONCILIATION, 0)} discrepancies",
    )
    return True


def _complete(connection: Connection, run_id: str, *, was: str) -> None:
    set_aside = connection.scalar(
        sa.select(sa.func.count()).select_from(quarantine).where(quarantine.c.state == "open")
    )
    if was == "preparing":
        move_run(connection, run_id, "running")
    move_run(connection, run_id, "completed_with_quarantine" if set_aside else "completed")
