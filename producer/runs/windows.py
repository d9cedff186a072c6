"""The next window of a stage: which step it is of, how its batches are sized, its ledger rows.

Pages may overlap with those before them; a step that takes lists of keys waits until the stage has
nothing under way, since what it lists is what the others left.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from models.engine import current
from models.engine.step import Context, Step
from models.ledger import selection
from models.ledger.tables import VERIFICATION, batches, stages
from producer.broker.messages import Message
from producer.reports import progress
from producer.runs import partition

# A stage's `step` once the last of its steps has been cut.
CUT = ""
# Batches whose times decide the size of the next ones, and how many are looked through for them.
RECENT, NEWEST = 8, 1_000
# What checking a row takes, of what writing it takes (docs/performance.md, "Stage by stage").
CHECKED = 0.4
# Of a run of so few rows, indexes and keys share a batch: it costs more than each of them.
FEW_ROWS = 20_000


def open_next(
    connection: Connection, context: Context, run: Any, stage: Any, *, is_busy: bool
) -> tuple[list[Message], Any]:
    """Cut the stage's next window into the ledger; [] when nothing can be cut now, or is left.

    And the stage as it is then. `is_busy` says that batches of the stage are under way. Call it
    with the run locked.
    """
    steps = [
        step
        for step in current.migration().steps_of(stage.name)
        if not (context.is_canary and step.hands_over)
    ]
    names = [step.name for step in steps]
    after = stage.last_key
    if stage.step == CUT:
        return [], stage
    for step in steps[names.index(stage.step) if stage.step else 0 :]:
        round_ = int(after) if after and after.isdecimal() else 0
        lists = step.key_lists(context, round_)
        if lists is not None and is_busy:
            return [], stage
        if lists is not None:
            if lists and not step.transactional and _is_small(context, run):
                lists = [list(chain(*lists))]
            found: list[dict[str, Any]] = [{"key_list": keys, "rows": 0} for keys in lists]
            # Items come in one round: pages that follow need not wait for its end to know that.
            after = str(round_ + 1) if found and step.takes_lists else None
        else:
            found, after = _pages(connection, context, run, stage, step, after)
        if found:
            following = names.index(step.name) + 1
            next_step = names[following] if following < len(names) else CUT
            is_cut = after is None
            number, rows = _cut_so_far(stage, step)
            stage = _set_stage(
                connection,
                stage,
                state="running",
                step=next_step if is_cut else step.name,
                last_key=after,
                window=stage.window + 1,
                step_windows=0 if is_cut else number + 1,
                step_rows=0 if is_cut else rows + sum(page["rows"] for page in found),
            )
            return _insert(connection, stage, step, found), stage
    return [], _set_stage(connection, stage, step=CUT)


def _is_small(context: Context, run: Any) -> bool:
    """Whether the run has few source rows; of a canary it knows its own only."""
    return not context.is_canary and sum(run.totals.values()) <= FEW_ROWS


def _pages(
    connection: Connection, context: Context, run: Any, stage: Any, step: Step, after: str | None
) -> tuple[list[dict[str, Any]], str | None]:
    """The next pages of one step, and the key to go on from (None: the step is cut).

    A canary has lists of its selected keys instead; none once no key is left.
    """
    table = step.table(context)
    assert table is not None
    size = _size(connection, run, stage, step)
    if context.is_canary:
        selected = context.sources[step.entity]
        most = size.rows * size.pages
        keys = selection.keys(context, selected, after=after, most=most)
        lists = [keys[start : start + size.rows] for start in range(0, len(keys), size.rows)]
        return [{"key_list": k, "rows": len(k)} for k in lists], keys[-1] if keys else None
    cut = partition.cut(connection, table, after=after, rows=size.rows, pages=size.pages)
    return [{"low": page.low, "high": page.high, "rows": page.rows} for page in cut], cut[-1].high


def _cut_so_far(stage: Any, step: Step) -> tuple[int, int]:
    """How many windows and rows of the step were cut."""
    return (stage.step_windows, stage.step_rows) if stage.step == step.name else (0, 0)


def _size(connection: Connection, run: Any, stage: Any, step: Step) -> partition.Size:
    """How large the step's next window is, from what its last batches took."""
    windows, cut = _cut_so_far(stage, step)
    if run.batch_size != "auto":
        return partition.Size(int(run.batch_size), partition.window_pages(windows))
    pace = _pace(connection, stage, step)
    if pace is None:
        return partition.Size(partition.FIRST_ROWS, partition.window_pages(windows))
    # There is a pace to begin with: each window more costs the time of opening it.
    pages = partition.window_pages(windows + partition.KNOWN_PACE)
    left = progress.rows_of(run, step) - cut
    # The estimate is used up, so how many rows are left is unknown.
    most = partition.LARGEST_ROWS
    if left > 0:
        most = partition.share(left, pace)
    return partition.Size(min(partition.next_rows(pace.rows, pace.seconds), most), pages)


def _pace(connection: Connection, stage: Any, step: Step) -> partition.Pace | None:
    """The pace of the step's last pages that are done; None where the run has none yet.

    A step begins at the pace of those before it: a lighter one with as many more rows in the time.
    """
    is_own = (batches.c.stage == stage.name) & (batches.c.step == step.name)
    newest = (
        sa.select(batches, is_own.label("is_own"))
        .where(batches.c.run_id == stage.run_id)
        .order_by(batches.c.id.desc())
        .limit(NEWEST)
        .subquery()
    )
    # Whatever the worker did before: a pause has no work in it.
    before = sa.func.lag(newest.c.finished_at).over(
        partition_by=newest.c.worker, order_by=newest.c.started_at
    )
    of = sa.select(newest, before.label("before")).subquery().c
    rows = of.rows * sa.func.greatest(1, _cost_of(of) / _cost(stage.name, step))
    recent = (
        sa.select(
            of.is_own,
            rows.label("rows"),
            of.worker,
            sa.extract("epoch", of.finished_at - of.started_at).label("seconds"),
            sa.extract("epoch", of.started_at - of.before).label("pause"),
            sa.func.row_number().over(partition_by=of.is_own, order_by=of.id.desc()).label("nth"),
        )
        .where(of.state == "done", of.key_list.is_(None), of.rows > 0)
        .subquery()
        .c
    )
    mean = connection.execute(
        sa.select(
            sa.func.avg(recent.rows),
            sa.func.coalesce(sa.func.avg(recent.seconds), 0),
            sa.func.count(recent.worker.distinct()),
            sa.func.greatest(sa.func.min(recent.pause), 0),
        )
        .where(recent.nth <= RECENT)
        .group_by(recent.is_own)
        .order_by(recent.is_own.desc())
        .limit(1)
    ).one_or_none()
    if mean is None:
        return None
    rows, seconds, workers, pause = mean
    return partition.Pace(int(rows), float(seconds), int(workers), float(pause))


def _cost(stage: str, step: Step) -> float:
    return max(1, step.weight) * (CHECKED if stage == VERIFICATION else 1)


def _cost_of(of: Any) -> sa.ColumnElement[Any]:
    """The same for a row of `batches`."""
    weights = {step.name: step.weight for step in current.migration().steps}
    weight = sa.case(weights, value=of.step, else_=Step.weight)
    return weight * sa.case((of.stage == VERIFICATION, CHECKED), else_=1)


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
                "window": stage.window,
            }
            for values in found
        ],
    ).all()
    return [Message(stage.run_id, batch_id, stage.name, step.name) for batch_id in ids]


def _set_stage(connection: Connection, stage: Any, **values: Any) -> Any:
    started = sa.func.coalesce(stages.c.started_at, sa.func.clock_timestamp())
    return connection.execute(
        sa.update(stages)
        .where(stages.c.run_id == stage.run_id, stages.c.name == stage.name)
        .values(started_at=started, **values)
        .returning(stages)
    ).one()
