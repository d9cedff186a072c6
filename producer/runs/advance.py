"""Opening a run, and moving it on: the next window of a stage, the next stage, the end.

Everything here is safe to repeat and to call from anywhere at the same time: a chord's body, the
reconciler of every worker, every waiting command. The row lock on the run makes them take turns.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine
from sqlalchemy.dialects.postgresql import distinct_on, insert

from models.engine import current
from models.engine.step import Context
from models.errors import Misconfigured, NotAllowed
from models.ledger import audit, relations, selection, sums
from models.ledger import tables as ledger
from models.ledger.selection import Choice
from models.ledger.tables import (
    FINISH,
    RECONCILIATION,
    VERIFICATION,
    batches,
    differences,
    move_run,
    quarantine,
    runs,
    stages,
)
from models.postgres.database import transaction
from models.postgres.rows import count_rows
from models.reports.words import number
from models.settings import Settings
from producer import outage
from producer.broker import namespace
from producer.broker.messages import Message
from producer.logs import Log
from producer.runs import budget, coverage, retry, standing, windows

# One is worked on while the next one waits: no worker idles at the end of a window.
WINDOWS = 2
# Thousands of rows tell enough of keys, and the reading of more holds everybody up.
_ANALYZE = (
    "SET LOCAL default_statistics_target = 10;"
    " ANALYZE migration.quarantine (entity, legacy_key, state),"
    " migration.before_images (entity, legacy_key, run_id),"
    " migration.changes (entity, legacy_key, owner_key)"
)
log = Log("migration.advance")
ID_TIME = "%Y%m%d-%H%M%S"


def open_run(engine: Engine, settings: Settings, choice: Choice | None = None) -> tuple[str, bool]:
    """Open a run, or join the one that is open; returns its id and whether it is new.

    With a choice it is a canary. Raises NotAllowed where another run is in the way, and
    Misconfigured for a choice of rows that are not there.
    """
    with transaction(engine) as connection:
        relations.require_own_ledger(connection, settings)
        run_id = _next_id(connection)
        opened = connection.scalar(
            insert(runs)
            .values(
                id=run_id,
                grants=current.migration().constants(settings),
                batch_size=str(settings.batch_size),
                tables=current.table_names(settings),
                relations=relations.read(connection, settings).kept,
                started_at=sa.func.clock_timestamp(),
            )
            .on_conflict_do_nothing()
            .returning(runs.c.id)
        )
        if opened is None:
            joined = _open_run(connection)
            # None: it ended between the two statements.
            if joined is None:
                return open_run(engine, settings, choice)
            read = functools.partial(Context.read, connection, settings, joined)
            selection.require_same(connection, joined, choice, read)
            return str(joined.id), False
        connection.execute(
            sa.insert(stages),
            [
                {"run_id": run_id, "direction": ledger.FORWARD, "name": name, "position": position}
                for name, position in current.migration().stages.items()
            ],
        )
        run = connection.execute(sa.select(runs).where(runs.c.id == run_id)).one()
        context = Context.read(connection, settings, run)
        relations.keep_types(connection, run_id, context.sources.shape.first_types)
        if choice is None:
            totals = _count_rows(connection, context)
        else:
            earlier = [each.id for each in standing.with_rows(connection)]
            selection.require_no_full_run(connection, earlier)
            keys = selection.choose(connection, context.migration, context.sources, choice)
            selection.keep(context, choice, keys)
            totals = selection.count(replace(context, is_canary=True))
        connection.execute(sa.update(runs).where(runs.c.id == run_id).values(totals=totals))
        chosen = {"selection": str(choice)} if choice else {}
        audit.note(connection, "enqueue-all", run_id, after={"rows": totals} | chosen)
        return run_id, True


def _count_rows(connection: Connection, context: Context) -> dict[str, int]:
    """Rows by entity; and by step, where one pages through other rows than its entity's."""
    counted = {table.oid: count_rows(connection, table) for table in context.sources.values()}
    declared = context.sources.declared.items()
    totals = {entity: counted.get(table.oid, 0) for entity, table in declared}
    for step in current.migration().steps:
        if not step.entity:
            continue
        table = None if step.takes_lists else step.table(context)
        if table is not None and table.oid not in counted:
            counted[table.oid] = count_rows(connection, table)
        rows = counted[table.oid] if table is not None else 0
        if rows != totals.setdefault(step.entity, rows):
            totals[step.name] = rows
    return totals


def _next_id(connection: Connection) -> str:
    """An id that sorts behind those of all runs, also behind one of the same second."""
    moment = datetime.now(UTC).replace(microsecond=0, tzinfo=None)
    newest = connection.scalar(sa.select(sa.func.max(runs.c.id)))
    if newest:
        opened = datetime.strptime(newest.rpartition("-")[0], ID_TIME)
        moment = max(moment, opened + timedelta(seconds=1))
    return f"{moment:{ID_TIME}}-{secrets.token_hex(2)}"


def _open_run(connection: Connection) -> Any:
    """The run that is open, or None; raises NotAllowed while one is being rolled back."""
    found = connection.execute(
        sa.select(runs).where(runs.c.state.in_((*ledger.OPEN_STATES, "rolling_back")))
    ).one_or_none()
    if found and found.state == "rolling_back":
        raise NotAllowed(
            f"Run {found.id} is being rolled back", hint="Wait for its end: producer status --watch"
        )
    return found


def advance(engine: Engine, settings: Settings, run_id: str) -> None:
    """Open whatever can be opened now, close what is complete, and publish the new batches.

    Does nothing while enough is open, and nothing to a run that is paused or over.
    """
    with transaction(engine) as connection:
        opened = _advance(connection, settings, run_id)
    for window in opened:
        publish_window(window)


def publish_window(window: list[Message]) -> None:
    """Publish a window; the only place here that imports Celery, which few commands need."""
    from producer.broker import queue

    queue.publish_window(window)


def begin(engine: Engine, settings: Settings, run_id: str) -> None:
    """The first `advance` of a run that a command has opened: it is in the ledger already.

    So a server that is away now is no error: the reconciler of a worker or of a waiting command
    does it.
    """
    try:
        advance(engine, settings, run_id)
    except Exception as failure:
        why = outage.cause(failure)
        if why is None:
            raise
        log.warning("left to the reconciler", run=run_id, error=why)


def _advance(connection: Connection, settings: Settings, run_id: str) -> list[list[Message]]:
    found = relations.read_run(connection, settings, run_id, is_locked=True)
    if found is None or found[0].state not in ledger.WORKED_ON:
        return []
    run, here = found
    relations.require(run, settings, here)
    in_turn = read_stages(connection, run)
    is_any_failed = any(stage.error is not None for stage in in_turn)
    if is_any_failed and budget.enforce(connection, settings, run_id):
        return []
    if run.state != "preparing":
        sums.fold(connection, run_id)
    namespace.note(here.ledger_id)
    read = functools.cache(lambda: Context.read(connection, settings, run))
    analyze = functools.cache(lambda: connection.exec_driver_sql(_ANALYZE))
    opened: list[list[Message]] = []
    turn: int | None = None
    for stage in in_turn:
        if turn not in (None, stage.position):
            break
        if stage.state == "done":
            continue
        state, windows = _advance_stage(connection, read, analyze, run, stage)
        if state == "failed":
            return []
        if state != "done":
            # Only stages of the same position may open beside it.
            turn = stage.position
        opened += windows
    if opened and run.state == "preparing":
        move_run(connection, run_id, "running")
    if turn is None and run.state == "rolling_back":
        move_run(connection, run_id, "rolled_back", error=None)
    elif turn is None and not _fail_on_differences(connection, run_id):
        _complete(connection, run_id, was=run.state)
    return opened


def read_stages(connection: Connection, run: Any) -> Sequence[Any]:
    """The stages that the run works on, in order; raises Misconfigured for another migration.

    Each with its number of `open_windows`, of which a batch is open; with whether a batch is
    `unpublished`: it never was published, or a retry put it there; and with the `error` of a
    failed one.
    """
    b = batches.c
    is_open = (b.run_id == run.id) & b.state.in_(("pending", "running"))
    is_unpublished = (b.state == "pending") & b.published_at.is_(None)
    open_ = (
        sa.select(
            b.stage,
            sa.func.count(b.window.distinct()).label("windows"),
            sa.func.bool_or(is_unpublished).label("unpublished"),
        )
        .where(is_open)
        .group_by(b.stage)
        .subquery()
    )
    failed = (
        sa.select(b.stage, sa.func.coalesce(b.error, "unknown").label("error"))
        .where(b.run_id == run.id, b.state == "failed")
        .ext(distinct_on(b.stage))
        .order_by(b.stage, b.id)
        .subquery()
    )
    query = (
        ledger.stages_in_turn(run)
        .add_columns(
            sa.func.coalesce(open_.c.windows, 0).label("open_windows"),
            sa.func.coalesce(open_.c.unpublished, False).label("unpublished"),
            failed.c.error,
        )
        .outerjoin_from(stages, open_, open_.c.stage == stages.c.name)
        .outerjoin(failed, failed.c.stage == stages.c.name)
    )
    found = connection.execute(query).all()
    migration = current.migration()
    declared = migration.undo_stages if run.state == "rolling_back" else migration.stages
    if others := declared.keys() ^ {stage.name for stage in found}:
        raise Misconfigured(
            f"Run {run.id} and the migration {migration.name} have different stages:"
            f" {', '.join(sorted(others))}",
            hint="Set MIGRATION to what it was when the run was opened.",
        )
    return found


def _advance_stage(
    connection: Connection,
    read: Callable[[], Context],
    analyze: Callable[[], Any],
    run: Any,
    stage: Any,
) -> tuple[str, list[list[Message]]]:
    """Move on a stage whose turn has come; returns its state, and the windows to publish.

    "failed": the run failed, too.
    """
    if stage.name == FINISH:
        if run.handed_over and stage.step is None:
            retry.take_up_differences(read())
        if _fail_on_differences(connection, run.id):
            return "failed", []
    is_open = stage.open_windows
    waiting = [_publish_waiting(connection, run.id, stage.name)] if stage.unpublished else []
    if is_open >= WINDOWS:
        return "running", waiting
    error = stage.error
    if error is not None and is_open:
        return "running", waiting
    if error is not None:
        _close_stage(connection, stage, "failed")
        move_run(connection, run.id, "failed", error=f"{stage.name}: {error}")
        return "failed", []
    if stage.started_at is None:
        # New tables fill within minutes; taken for empty, they are looped over row by row.
        analyze()
    cut = _open_windows(connection, read(), run, stage)
    if is_open or cut:
        return "running", waiting + cut
    coverage.note_gaps(read(), stage.name)
    _close_stage(connection, stage, "done")
    return "done", []


def _open_windows(
    connection: Connection, context: Context, run: Any, stage: Any
) -> list[list[Message]]:
    """Cut windows until as many are open as may be, or none can be cut now."""
    opened: list[list[Message]] = []
    is_open = stage.open_windows
    while is_open + len(opened) < WINDOWS:
        busy = is_open + len(opened) > 0
        window, stage = windows.open_next(connection, context, run, stage, is_busy=busy)
        if not window:
            break
        opened.append(window)
    return opened


def reopen_stages(connection: Connection, run_id: str, which: sa.ColumnElement[bool]) -> None:
    """Let stages continue; what lay between their end and now is no time of theirs."""
    took = stages.c.finished_at - stages.c.started_at
    started = sa.func.coalesce(sa.func.clock_timestamp() - took, stages.c.started_at)
    connection.execute(
        sa.update(stages)
        .where(stages.c.run_id == run_id, which)
        .values(state="running", started_at=started, finished_at=None)
    )


def _close_stage(connection: Connection, stage: Any, state: str) -> None:
    connection.execute(
        sa.update(stages)
        .where(stages.c.run_id == stage.run_id, stages.c.name == stage.name)
        .values(state=state, finished_at=sa.func.clock_timestamp())
    )


def _publish_waiting(connection: Connection, run_id: str, stage: str) -> list[Message]:
    """Batches of the stage that were never published, or released: a retry put them there."""
    taken = connection.execute(
        sa.update(batches)
        .where(batches.c.run_id == run_id, batches.c.stage == stage)
        .where(batches.c.state == "pending", batches.c.published_at.is_(None))
        .values(published_at=sa.func.clock_timestamp())
        .returning(batches.c.run_id, batches.c.id, batches.c.stage, batches.c.step)
    )
    return [Message(*row) for row in taken]


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
    error = number(found.get(VERIFICATION, 0), "difference")
    error += f", {number(found.get(RECONCILIATION, 0), 'discrepancy')}"
    lost = connection.scalar(
        sa.select(
            sa.func.max(sa.cast(batches.c.counts["unaccounted"].astext, sa.BigInteger))
        ).where(batches.c.run_id == run_id, batches.c.stage.in_((VERIFICATION, FINISH)))
    )
    if lost:
        error += f"; {lost} rows are not accounted for: neither migrated nor quarantined"
    move_run(connection, run_id, "failed", error=error)
    return True


def _complete(connection: Connection, run_id: str, *, was: str) -> None:
    # A canary has judged its own rows again, and no others.
    is_full = sa.exists().where(runs.c.id == run_id, runs.c.selection.is_(None))
    any_quarantined = connection.scalar(
        sa.select(sa.func.count())
        .select_from(quarantine)
        .where(quarantine.c.state == "open", sa.or_(quarantine.c.run_id == run_id, is_full))
    )
    if was == "preparing":
        move_run(connection, run_id, "running")
    move_run(connection, run_id, "completed_with_quarantine" if any_quarantined else "completed")
