"""What the settled batches of a stage come to, kept with the stage: no reader adds up all of them.

A batch that is done, split or quarantined never moves again. So a stage is summed up in the order
of the ids, up to one (`summed_to`) that has only settled batches before it. Readers add those
behind it, which are few: they are under way, or failed, or ended within the last minute. Batches
that come later have higher ids; the parts of one that is split come before that one is settled.

Who changes or deletes settled batches calls `forget` in the same transaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from decimal import Decimal
from math import inf
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, text
from sqlalchemy.dialects import postgresql as pg

from models.engine.step import Counts
from models.ledger.tables import runs, stages

# What ended within these seconds is not summed up yet: readers ask what was done lately.
RECENT_SECONDS = 60
# Batches of a stage that one call sums up, more than a window has.
AT_ONCE = 500
# Upper ends, in seconds: a batch is cut to take about two seconds, and killed after half an hour.
DURATIONS = (0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 300, 1800)
_ENDS = [(str(end), end) for end in DURATIONS]
_NUMBER = (int, float)

_NEXT = text(
    """
SELECT s.name AS of_stage, n.*
FROM migration.stages s CROSS JOIN LATERAL (
  SELECT b.*, bool_and(b.state IN ('done', 'split', 'quarantined') AND coalesce(
    b.finished_at < now() - make_interval(secs => :recent), true)) OVER (ORDER BY b.id) AS is_next
  FROM (
    SELECT b.id, b.step, b.state, b.window = 0 AS is_again, b.rows, b.worker, b.counts,
      extract(epoch FROM b.finished_at - b.started_at)::float AS seconds, b.finished_at,
      b.attempt, b.expiries, b.republished
    FROM migration.batches b
    WHERE (b.run_id, b.stage, b.id) > (s.run_id, s.name, s.summed_to)
      AND (b.run_id, b.stage) <= (s.run_id, s.name)
    ORDER BY b.run_id, b.stage, b.id LIMIT :most) AS b
) AS n
WHERE s.run_id = :run_id AND n.is_next
ORDER BY n.id
"""
)
_COLUMNS = """stage step state is_again batches rows seconds attempts expiries republished durations
 counts published_at lease_until finished_at"""
# The batches behind the sums. The planner cannot know how few they are: with `b.id > s.summed_to`
# it may walk along the primary key, through those of all stages; without `OFFSET 0`, through all.
BEHIND = """
migration.stages s CROSS JOIN LATERAL (
  SELECT * FROM migration.batches b
  WHERE (b.run_id, b.stage, b.id) > (s.run_id, s.name, s.summed_to)
    AND (b.run_id, b.stage) <= (s.run_id, s.name) OFFSET 0) AS b
"""
# One statement, and so one snapshot: no batch is in both halves, or in none.
BATCH_TOTALS = f"""
SELECT s.name AS stage, step.key AS step, state.key AS state, kind.key = 'again' AS is_again,
  t.batches, t.rows, t.seconds, t.attempts, t.expiries, t.republished, t.durations, t.counts,
  NULL::timestamptz AS published_at, NULL::timestamptz AS lease_until,
  s.summed_until AS finished_at
FROM migration.stages s
CROSS JOIN jsonb_each(s.sums -> 'steps') AS step
CROSS JOIN jsonb_each(step.value) AS state
CROSS JOIN jsonb_each(state.value) AS kind
CROSS JOIN jsonb_to_record(kind.value) AS t(batches bigint, rows bigint, seconds float,
  attempts bigint, expiries bigint, republished bigint, durations jsonb, counts jsonb)
WHERE s.run_id = :of_run
UNION ALL
SELECT b.stage, b.step, b.state, b.window = 0, 1, b.rows,
  extract(epoch FROM b.finished_at - b.started_at)::float,
  b.attempt, b.expiries, b.republished, NULL, b.counts, b.published_at, b.lease_until, b.finished_at
FROM {BEHIND}
WHERE s.run_id = :of_run
"""
_BY_WORKER = f"""
SELECT w.key AS worker, (w.value ->> 'batches')::bigint AS batches,
  (w.value ->> 'rows')::bigint AS rows, NULL::timestamptz AS finished_at, false AS is_held
FROM migration.stages s CROSS JOIN jsonb_each(s.sums -> 'workers') AS w
WHERE s.run_id = :of_run
UNION ALL
SELECT b.worker, (b.state = 'done')::int, CASE b.state WHEN 'done' THEN b.rows ELSE 0 END,
  b.finished_at, b.state = 'running'
FROM {BEHIND}
WHERE s.run_id = :of_run AND b.worker IS NOT NULL
"""


def batch_totals() -> sa.Subquery:
    """All batches of the run :of_run, as rows with one of them each, or the sum of many.

    `durations` counts, of a sum, the batches that took up to each of DURATIONS; else it is null.
    """
    typed = {"counts": pg.JSONB, "durations": pg.JSONB}
    columns = [sa.column(name, typed.get(name)) for name in _COLUMNS.split()]
    return text(BATCH_TOTALS).columns(*columns).subquery("batch_totals")


def by_worker() -> sa.Subquery:
    """What each worker has done of the run :of_run: in the sums, and batch by batch."""
    names = ("worker", "batches", "rows", "finished_at", "is_held")
    return text(_BY_WORKER).columns(*map(sa.column, names)).subquery("by_worker")


def fold(connection: Connection, run_id: str) -> int:
    """Sum up the next settled batches of each stage; returns how many. Call it with the run locked.

    So no two sum up at once, and nobody cuts a batch meanwhile.
    """
    next_ = {"run_id": run_id, "recent": RECENT_SECONDS, "most": AT_ONCE}
    by_stage: dict[str, list[Any]] = {}
    for row in connection.execute(_NEXT, next_):
        by_stage.setdefault(row.of_stage, []).append(row)
    for name, found in by_stage.items():
        mine = (stages.c.run_id == run_id, stages.c.name == name)
        sums: Counts = connection.execute(sa.select(stages.c.sums).where(*mine)).scalar_one()
        for row in found:
            _add(sums, _of(row))
        ended = max((row.finished_at for row in found if row.finished_at), default=None)
        until = sa.func.greatest(stages.c.summed_until, ended)
        values = {"sums": sums, "summed_to": found[-1].id, "summed_until": until}
        connection.execute(sa.update(stages).where(*mine).values(values))
    return sum(map(len, by_stage.values()))


def catch_up(connection: Connection) -> None:
    """Sum up runs of which nothing is: those of an older version. A run that is busy does it."""
    is_begun = sa.exists().where(stages.c.run_id == runs.c.id, stages.c.summed_to > 0)
    query = sa.select(runs.c.id).where(~is_begun).with_for_update(skip_locked=True)
    for run_id in connection.scalars(query).all():
        while fold(connection, run_id):
            pass


def forget(connection: Connection, run_id: str, names: Iterable[str]) -> None:
    """Let stages be summed up anew."""
    connection.execute(
        sa.update(stages)
        .where(stages.c.run_id == run_id, stages.c.name.in_(names))
        .values(sums={}, summed_to=0, summed_until=None)
    )


def _of(row: Any) -> Counts:
    """The sums of one batch."""
    seconds = inf if row.seconds is None else row.seconds
    of_one = {
        "batches": 1,
        "rows": row.rows,
        "seconds": row.seconds or 0.0,
        "attempts": row.attempt,
        "expiries": row.expiries,
        "republished": row.republished,
        "durations": {name: int(seconds <= end) for name, end in _ENDS},
        "counts": row.counts,
    }
    kind = "again" if row.is_again else "first"
    sums: Counts = {"steps": {row.step: {row.state: {kind: of_one}}}}
    if row.worker and row.state == "done":
        sums["workers"] = {row.worker: {"batches": 1, "rows": row.rows}}
    return sums


def _add(total: Counts, more: Counts) -> None:
    """Add number by number, in place. What is no number is left out: nobody adds it up."""
    for name, value in more.items():
        if isinstance(value, dict):
            if isinstance(inner := total.setdefault(name, {}), dict):
                _add(inner, value)
            continue
        present = total.get(name, 0)
        if isinstance(value, _NUMBER) and isinstance(present, _NUMBER):
            total[name] = present + value
        else:
            # An amount of money.
            with suppress(ArithmeticError, TypeError, ValueError):
                total[name] = str(Decimal(present) + Decimal(value))
