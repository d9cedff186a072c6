"""Undoing runs: which ones, in which order, and the stages of each.

The batches are in `models.engine.rollback`. A run that wrote nothing is passed over: it counts as
rolled back without a stage of its own.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from models.engine import current
from models.engine.rollback import forget_findings
from models.errors import NotAllowed
from models.ledger import audit, relations, sums, tables
from models.ledger.tables import (
    batches,
    before_images,
    conflicts,
    move_batches,
    move_run,
    runs,
    stages,
)
from models.postgres.database import transaction
from models.settings import Settings
from producer.reports import status
from producer.runs import advance, standing
from producer.runs.standing import Standing

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


def targets(engine: Engine, run_id: str | None, *, force: bool) -> list[Standing]:
    """The runs that a rollback undoes, newest first: RUN, or every run whose rows are still there.

    With `force`, also those that kept conflicts. Raises UnknownRun without any run, and NotAllowed
    where the first of them cannot be rolled back.
    """
    with transaction(engine) as connection:
        newest = status.find_run(connection, run_id)
        found = _targets(connection, force)
        if run_id is None and not found:
            _require_allowed(connection, newest, force)
        if run_id is not None:
            found = [run for run in found if run.id == newest.id] or [
                Standing(newest.id, newest.state, False, False, bool(newest.forgotten_at), 0)
            ]
        _require_allowed(connection, status.find_run(connection, found[0].id), force)
        # What is older than a run that cannot be undone has to stay.
        forgotten = [n for n, run in enumerate(found) if run.is_forgotten]
        return found[: forgotten[0]] if forgotten else found


def _targets(connection: Connection, force: bool) -> list[Standing]:
    """In their order. Where no run wrote rows: the oldest, which may have left its triggers."""
    found = standing.read(connection)
    chosen = [
        run
        for run in found
        if run.has_rows or run.state == "rolling_back" or (force and run.state == "rolled_back")
    ]
    rest = [run for run in found if run.state != "rolled_back"]
    return chosen or rest[-1:]


def start(engine: Engine, settings: Settings, run_id: str | None, *, force: bool) -> str:
    """Begin to undo a run, or resume that; returns its id. By default the newest with rows.

    Raises NotAllowed while a run is open, for a run that a later one wrote after, and where the
    before-images were dropped. By `force`, one that kept conflicts is undone once more.
    """
    with transaction(engine) as connection:
        if run_id is None:
            status.find_run(connection, None)
            run_id = next((run.id for run in _targets(connection, force)), None)
        run = status.find_run(connection, run_id)
        _require_allowed(connection, run, force)
        relations.adopt(connection, run, settings)
        audit.note(
            connection,
            "rollback",
            run.id,
            before={"state": run.state, "forced": run.forced},
            after={"forced": force or (run.forced and run.state == "rolling_back")},
        )
        if run.state != "rolling_back":
            _pass_over(connection, run.id)
            _open(connection, run, force)
        elif force:
            connection.execute(sa.update(runs).where(runs.c.id == run.id).values(forced=True))
    advance.begin(engine, settings, run.id)
    return str(run.id)


def left(engine: Engine) -> list[Standing]:
    """The runs whose rows are still in the database, newest first."""
    with transaction(engine) as connection:
        return standing.with_rows(connection)


def next_command(run: Standing, force: bool) -> str:
    """What to type to roll back a run that is left."""
    if run.is_forgotten:
        return "producer restore DIR (its before-images were dropped: only a backup has them)"
    return f"producer rollback {run.id} --wait" + (" --force" if force else "")


def _require_allowed(connection: Connection, run: Any, force: bool) -> None:
    found = standing.read(connection)
    for other in found:
        if other.state in tables.OPEN_STATES:
            raise NotAllowed(
                f"Run {other.id} is {other.state}: only a run that is over can be rolled back",
                hint=f"Stop it first: producer cancel {other.id}",
            )
        if other.state == "rolling_back" and other.id != run.id:
            raise NotAllowed(
                f"Run {other.id} is being rolled back",
                hint="Wait for its end: producer rollback --wait",
            )
    if run.forgotten_at:
        raise NotAllowed(
            f"Run {run.id} cannot be rolled back: its before-images were dropped",
            hint="Only a backup from before it can bring the old state back: producer restore DIR",
        )
    later = [other.id for other in found if other.has_rows and other.id > run.id]
    if later:
        raise NotAllowed(
            f"Run {later[0]} wrote rows after run {run.id}",
            hint=f"First: producer rollback {later[0]} --wait",
        )
    if run.state == "rolled_back":
        kept = any(other.id == run.id for other in found)
        if not (force and kept):
            raise NotAllowed(
                f"Run {run.id} is rolled back already",
                hint="What it kept is undone by --force." if kept else "Nothing is left to undo.",
            )


def _pass_over(connection: Connection, run_id: str) -> None:
    """Close the runs that wrote nothing; the older ones when no other run has rows."""
    found = [run for run in standing.read(connection) if run.id != run_id]
    is_last = not any(run.has_rows for run in found)
    for run in found:
        if run.state == "rolled_back" or run.has_rows or not (is_last or run.id > run_id):
            continue
        move_run(connection, run.id, "rolling_back", error=None)
        forget_findings(connection, run.id)
        move_run(connection, run.id, "rolled_back")
        audit.note(
            connection, "rollback", run.id, before={"state": run.state}, after={"wrote": "nothing"}
        )


def _open(connection: Connection, run: Any, force: bool) -> None:
    """The stages of the rollback; a rollback that failed continues with them."""
    move_run(connection, run.id, "rolling_back", error=None, forced=force)
    mine = (stages.c.run_id == run.id, stages.c.direction == tables.BACK)
    of_undo = batches.c.stage.in_(sa.select(stages.c.name).where(*mine))
    # A worker that still has one of these finds its claim gone, and changes nothing.
    connection.execute(
        sa.delete(batches).where(
            batches.c.run_id == run.id,
            batches.c.state.in_(("pending", "running", "failed")),
            ~of_undo,
        )
    )
    has_begun = connection.scalar(sa.select(stages.c.run_id).where(*mine).limit(1))
    if not has_begun:
        connection.execute(
            sa.insert(stages),
            [
                {"run_id": run.id, "direction": tables.BACK, "name": name, "position": position}
                for name, position in current.migration().undo_stages.items()
            ],
        )
    elif run.state == "failed":
        again = move_batches("pending", error=None, lapses=0, hand_backs=0, published_at=None)
        connection.execute(
            again.where(batches.c.run_id == run.id, of_undo, batches.c.state == "failed")
        )
        is_failed = sa.and_(*mine, stages.c.state == "failed")
        advance.reopen_stages(connection, run.id, is_failed)
    else:
        # Once more, by force. What was undone before counts, but as no progress of this time.
        connection.execute(sa.delete(conflicts).where(conflicts.c.run_id == run.id))
        connection.execute(
            sa.update(batches).where(batches.c.run_id == run.id, of_undo).values(window=0)
        )
        sums.forget(connection, run.id, current.migration().undo_stages)
        anew = {"step": None, "last_key": None, "started_at": None, "finished_at": None}
        connection.execute(sa.update(stages).where(*mine).values(state="pending", **anew))
    for step in current.migration().steps:
        if step.irreversible:
            values = {
                "run_id": run.id,
                "step": step.name,
                "entities": current.migration().plural(step.entity),
            }
            connection.execute(_IRREVERSIBLE, values)


def forget(engine: Engine, run_id: str | None) -> tuple[str, int]:
    """Drop a finished run's before-images; returns its id and how many there were.

    It cannot be rolled back after that. Raises NotAllowed for a run that needs them still.
    """
    with transaction(engine) as connection:
        run = status.find_run(connection, run_id)
        if run.state not in (*tables.COMPLETED_STATES, "rolled_back"):
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
