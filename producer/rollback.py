"""Undoing a run: who may be undone, and the stages of it; the batches are `models.steps.undo*`."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from models import audit, ledger
from models.database import transaction
from models.errors import NotAllowed
from models.ledger import batches, before_images, conflicts, move_batches, move_run, runs, stages
from models.settings import Settings
from models.steps import STEPS, undo_stage_names
from producer import enqueue, report

FORGET_AT_ONCE = 10_000
# A step that wrote rows, by its own counts where it has any, and says that nothing undoes them.
_IRREVERSIBLE = sa.text(
    """
INSERT INTO migration.conflicts (run_id, kind, table_name, row_key)
SELECT :run_id, 'irreversible', :step, '*'
WHERE EXISTS (
  SELECT FROM migration.batches b
  WHERE b.run_id = :run_id AND b.step = :step AND b.state = 'done'
    AND b.stage NOT IN ('verification', 'reconciliation')
    AND coalesce((b.counts #>> ARRAY[:entities, 'total'])::bigint
      > (b.counts #>> ARRAY[:entities, 'quarantined'])::bigint, true))
ON CONFLICT DO NOTHING
"""
)


def start(engine: Engine, settings: Settings, run_id: str | None, *, force: bool) -> str:
    """Begin to undo a run, or go on with it; returns its id. The newest one not rolled back.

    Raises NotAllowed for a run that is open, that a later run stands on, or whose before-images
    were dropped. By `force`, one that kept conflicts is undone once more.
    """
    with transaction(engine) as connection:
        run = _find(connection, run_id, force)
        enqueue.require_same_tables(run, settings)
        audit.note(
            connection,
            "rollback",
            run.id,
            before={"state": run.state, "forced": run.forced},
            after={"forced": force or (run.forced and run.state == "rolling_back")},
        )
        if run.state != "rolling_back":
            _open(connection, run, force)
        elif force:
            connection.execute(sa.update(runs).where(runs.c.id == run.id).values(forced=True))
    enqueue.advance(engine, settings, run.id)
    return str(run.id)


def _find(connection: Connection, run_id: str | None, force: bool) -> Any:
    run = report.find_run(connection, run_id)
    standing = sa.select(runs.c.id).where(runs.c.state != "rolled_back")
    newest = connection.scalar(standing.order_by(runs.c.id.desc()).limit(1))
    if run_id is None and newest is not None:
        run = report.find_run(connection, newest)
    if run.state in ledger.OPEN_STATES:
        raise NotAllowed(
            f"Run {run.id} is {run.state}: only a run that is over can be rolled back",
            hint=f"Stop it first: producer cancel {run.id}",
        )
    if run.forgotten_at:
        raise NotAllowed(f"Run {run.id} cannot be rolled back: its before-images were dropped")
    if newest is not None and newest > run.id:
        raise NotAllowed(
            f"Run {newest} stands on run {run.id}", hint=f"First: producer rollback {newest} --wait"
        )
    if run.state == "rolled_back":
        kept = connection.scalar(
            sa.select(conflicts.c.run_id).where(conflicts.c.run_id == run.id).limit(1)
        )
        if not (force and kept):
            raise NotAllowed(
                f"Run {run.id} is rolled back already",
                hint="What it kept is undone by --force." if kept else "Nothing is left to undo.",
            )
    return run


def _open(connection: Connection, run: Any, force: bool) -> None:
    """The stages of the rollback; where it had failed on the way, they go on."""
    move_run(connection, run.id, "rolling_back", error=None, forced=force)
    of_undo = batches.c.stage.in_(undo_stage_names())
    # A worker that still has one of these finds its claim gone, and changes nothing.
    connection.execute(
        sa.delete(batches).where(
            batches.c.run_id == run.id,
            batches.c.state.in_(("pending", "running", "failed")),
            ~of_undo,
        )
    )
    mine = (stages.c.run_id == run.id, stages.c.position >= ledger.UNDO_POSITION)
    has_begun = connection.scalar(sa.select(stages.c.run_id).where(*mine).limit(1))
    if not has_begun:
        connection.execute(
            sa.insert(stages),
            [
                {"run_id": run.id, "name": name, "position": ledger.UNDO_POSITION + number}
                for number, name in enumerate(undo_stage_names())
            ],
        )
    elif run.state == "failed":
        again = move_batches("pending", error=None, lapses=0, hand_backs=0, published_at=None)
        connection.execute(
            again.where(batches.c.run_id == run.id, of_undo, batches.c.state == "failed")
        )
        connection.execute(
            sa.update(stages)
            .where(*mine, stages.c.state == "failed")
            .values(state="running", finished_at=None)
        )
    else:
        # Once more, by force. What was undone before counts, but as no progress of this time.
        connection.execute(sa.delete(conflicts).where(conflicts.c.run_id == run.id))
        connection.execute(
            sa.update(batches).where(batches.c.run_id == run.id, of_undo).values(window=0)
        )
        anew = {"step": None, "last_key": None, "started_at": None, "finished_at": None}
        connection.execute(sa.update(stages).where(*mine).values(state="pending", **anew))
    for step in STEPS:
        if step.irreversible:
            values = {"run_id": run.id, "step": step.name, "entities": f"{step.entity}s"}
            connection.execute(_IRREVERSIBLE, values)


def forget(engine: Engine, run_id: str | None) -> tuple[str, int]:
    """Drop a finished run's before-images; returns its id and how many there were.

    It cannot be rolled back after that. Raises NotAllowed for a run that needs them still.
    """
    with transaction(engine) as connection:
        run = report.find_run(connection, run_id)
        if run.state not in (*ledger.COMPLETED_STATES, "rolled_back"):
            raise NotAllowed(
                f"Run {run.id} is {run.state}: its before-images are needed",
                hint="Only those of a run that is complete, or rolled back, can be dropped.",
            )
        connection.execute(
            sa.update(runs)
            .where(runs.c.id == run.id)
            .values(forgotten_at=sa.func.clock_timestamp(), handed_over=True)
        )
        audit.note(connection, "forget", run.id, before={"state": run.state})
    dropped = 0
    while gone := _forget_some(engine, run.id):
        dropped += gone
    return str(run.id), dropped


def _forget_some(engine: Engine, run_id: str) -> int:
    with transaction(engine) as connection:
        some = (
            sa.select(before_images.c.entity, before_images.c.legacy_key)
            .where(before_images.c.run_id == run_id)
            .limit(FORGET_AT_ONCE)
        )
        of_these = sa.tuple_(before_images.c.entity, before_images.c.legacy_key).in_(some)
        return connection.execute(
            sa.delete(before_images).where(before_images.c.run_id == run_id, of_these)
        ).rowcount
