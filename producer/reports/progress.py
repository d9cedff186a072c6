"""How far a run is, from its batches: stages, sums of what they counted, how the rows stand."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from models.engine import current
from models.engine.step import Step
from models.ledger import sums
from models.ledger.tables import (
    COMPLETED_STATES,
    FINISH,
    LISTED,
    RECONCILIATION,
    VERIFICATION,
    WORKED_ON,
    differences,
    quarantine,
    runs,
    stages,
)
from models.reports.run import Batches, Stage, Standing

RECENT_SECONDS = 10.0
# By the accounting before the cutover, and after it.
ACCOUNTED, FINAL = "accounted", "final"


def stages_of(connection: Connection, run: Any) -> list[Stage]:
    """The stages in order, with their batches and the rows that those have passed."""
    # While nobody works on the run, no stage takes time.
    stopped = run.paused_at if run.state == "paused" else run.finished_at
    end = sa.func.coalesce(stages.c.finished_at, stopped, sa.func.clock_timestamp())
    seconds = sa.extract("epoch", end - stages.c.started_at)
    of = sums.batch_totals().c
    is_first, is_counted = ~of.is_again, is_of_counted_step(of.step)
    # Not yet summed up.
    is_one = of.durations.is_(None)
    lately = sa.func.clock_timestamp() - sa.text(f"interval '{RECENT_SECONDS} seconds'")
    grouped: dict[str, dict[str, Any]] = {}
    for row in connection.execute(
        sa.select(
            of.stage,
            of.state,
            sa.func.sum(of.batches).label("total"),
            _sum(of.rows, is_first, is_counted).label("rows"),
            _sum(of.rows, is_first, is_counted, is_one, of.finished_at > lately).label("lately"),
            _sum(of.seconds, is_first).label("busy"),
        ).group_by(of.stage, of.state),
        {"of_run": run.id},
    ):
        grouped.setdefault(row.stage, {})[row.state] = row
    result = []
    for row in connection.execute(
        sa.select(stages.c.name, stages.c.state, sa.func.coalesce(seconds, 0).label("seconds"))
        .where(stages.c.run_id == run.id)
        .order_by(*LISTED)
    ):
        found = grouped.get(row.name, {})
        finished = found.get("done")
        steps = current.migration().steps_of(row.name)
        total = sum(rows_of(run, step) for step in steps if step.is_counted)
        done = int(finished.rows) if finished else 0
        result.append(
            Stage(
                name=row.name,
                state=row.state,
                batches=Batches(
                    total=sum(each.total for each in found.values()),
                    **{state: each.total for state, each in found.items()},
                ),
                rows=done,
                rows_total=max(total, done) if row.state != "done" else done,
                seconds=round(float(row.seconds), 3),
                busy_seconds=round(float(finished.busy), 3) if finished else 0.0,
                rows_per_second=_pace(finished, row),
            )
        )
    return result


def is_of_counted_step(step: sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
    """Condition on a batch's step: its rows count, and are not those of another one once more."""
    return step.not_in(current.migration().counted_twice)


def rows_of(run: Any, step: Step) -> int:
    """The rows that a step pages through, as counted when the run was opened."""
    return int(run.totals.get(step.name, run.totals.get(step.entity, 0)))


def _sum(what: sa.ColumnElement[Any], *of: sa.ColumnElement[bool]) -> sa.ColumnElement[Any]:
    return sa.func.coalesce(sa.func.sum(what).filter(*of), 0)


def _pace(finished: Any, stage: Any) -> float:
    """Rows a second of a stage under way, over the last seconds."""
    if stage.state != "running" or not finished or not stage.seconds:
        return 0.0
    return round(float(finished.lately) / min(RECENT_SECONDS, float(stage.seconds)), 1)


def counts_of(connection: Connection, run_id: str) -> Mapping[tuple[str, str], Any]:
    """Sums of what the batches counted."""
    migration = current.migration()
    names = tuple(map(migration.plural, migration.counted))
    statement = _counting(names, migration.reported, tuple(migration.amounts), migration.checked)
    row = connection.execute(statement, {"of_run": run_id}).one()
    return {
        (group, name): value if name in migration.amounts else int(value)
        for label, value in row._mapping.items()
        if value is not None
        for group, _, name in [str(label).partition("/")]
    }


@functools.cache
def _counting(
    entities: tuple[str, ...], written: tuple[str, ...], amounts: tuple[str, ...], reconciled: str
) -> sa.Select[Any]:
    """The sums of the run :of_run. Built once a process."""
    of = sums.batch_totals().c
    counts = of.counts

    def total(path: str, *of: sa.ColumnElement[bool]) -> sa.ColumnElement[Any]:
        value = sa.func.sum(sa.cast(counts.op("#>>")(path), sa.Numeric))
        return sa.func.coalesce(value.filter(*of), 0)

    paths = {("written", name): f"{{rows,{name}}}" for name in written}
    paths |= {("written", name): f"{{{name}}}" for name in amounts}
    checked = {
        (VERIFICATION, "rows_checked"): "{rows_checked}",
        (VERIFICATION, "differences"): "{differences}",
        (RECONCILIATION, "checked"): f"{{{reconciled}}}",
        (RECONCILIATION, "discrepancies"): "{discrepancies}",
    }
    standing = {
        (group, f"{name}.{what}"): f"{{{name},{what}}}"
        for group in ("written", VERIFICATION)
        for name in entities
        for what in ("total", "quarantined")
    }
    is_check, is_last = of.stage == VERIFICATION, of.stage == FINISH
    paths[VERIFICATION, "waiting"] = "{quarantine,waiting}"
    columns = [
        total(path, sa.true()).label(f"{group}/{name}")
        for (group, name), path in {**paths, **checked}.items()
    ] + [
        # A retry passes rows again: its batches, which belong to no window, do not count here.
        total(path, is_check if group == VERIFICATION else ~is_check, ~of.is_again).label(
            f"{group}/{name}"
        )
        for (group, name), path in standing.items()
    ]
    # Null where version 0.1 counted: it did not account for the rows.
    columns += [
        sa.func.sum(sa.cast(counts.op("#>>")(f"{{{by},{name},{what}}}"), sa.Numeric))
        .filter(which)
        .label(f"{by}/{name}.{what}")
        for by, which in ((ACCOUNTED, is_check), (FINAL, is_last))
        for name in entities
        for what in ("total", "migrated", "quarantined")
    ]
    return sa.select(*columns)


def last_count(connection: Connection, run_id: str) -> str | None:
    """Which stage last counted all legacy rows: the verification, the finish, or None."""
    found: str | None = connection.scalar(
        sa.select(stages.c.name)
        .where(stages.c.run_id == run_id, stages.c.state == "done")
        .where(stages.c.name.in_((VERIFICATION, FINISH)))
        .order_by(stages.c.finished_at.desc())
        .limit(1)
    )
    return found


def standing_of(
    connection: Connection,
    run: Any,
    counts: Mapping[tuple[str, str], Any],
    name: str,
    counted_by: str | None,
) -> Standing:
    """How the rows of an entity stand, as `last_count` says; before it, what was seen so far."""
    migration = current.migration()
    entity = next(e for e in migration.counted if migration.plural(e) == name)
    by = {FINISH: FINAL, VERIFICATION: ACCOUNTED}.get(counted_by or "", "")
    found = {
        what: counts[by, f"{name}.{what}"]
        for what in ("total", "migrated", "quarantined")
        if (by, f"{name}.{what}") in counts
    }
    if "migrated" in found:
        return Standing(**found)
    if counted_by == FINISH:
        total, quarantined = found.get("total", 0), found.get("quarantined", 0)
        return Standing(total=total, migrated=total - quarantined, quarantined=quarantined)
    if counted_by is None:
        seen = counts["written", f"{name}.total"]
        quarantined = connection.scalar(
            sa.select(sa.func.count())
            .select_from(quarantine)
            .where(quarantine.c.entity == entity, quarantine.c.state.in_(("open", "accepted")))
        )
        total = max(seen, run.totals.get(entity, 0))
        return Standing(total=total, migrated=max(0, seen - quarantined), quarantined=quarantined)
    missing = connection.scalar(
        sa.select(sa.func.count(sa.distinct(differences.c.legacy_key))).where(
            differences.c.run_id == run.id,
            differences.c.entity == entity,
            differences.c.kind == "missing",
            differences.c.stage == VERIFICATION,
        )
    )
    total, quarantined = (
        counts[VERIFICATION, f"{name}.{what}"] for what in ("total", "quarantined")
    )
    return Standing(
        total=total, migrated=total - quarantined - (missing or 0), quarantined=quarantined
    )


# From one change of the run's state to the next, or until now.
_ACTIVE = sa.text("""
SELECT coalesce(sum(extract(
  epoch FROM coalesce(m.until, r.finished_at, clock_timestamp()) - m.at)), 0)
FROM migration.runs r CROSS JOIN (
  SELECT s.state, s.at, lead(s.at) OVER (ORDER BY s.at, s.id) AS until FROM (
    SELECT 0 AS id, 'preparing' AS state, r.started_at AS at
    FROM migration.runs r WHERE r.id = :run_id
    UNION ALL
    SELECT e.id, e.state, e.at FROM migration.events e WHERE e.run_id = :run_id AND e.kind = 'run'
  ) AS s
) AS m
WHERE r.id = :run_id AND m.state = ANY(:states)
""")


def active_seconds(connection: Connection, run_id: str, *, of_rollback: bool) -> float:
    """How long a run, or its rollback, was worked on: without pauses, and without what lay between
    an end and a retry."""
    states = [state for state in WORKED_ON if (state == "rolling_back") is of_rollback]
    return float(connection.scalar(_ACTIVE, {"run_id": run_id, "states": states}) or 0)


def undone(
    connection: Connection, run_id: str, standings: dict[str, Standing]
) -> dict[str, Standing]:
    """How the rows stand without this run: as the run before it left them, or not migrated."""
    earlier = connection.execute(
        sa.select(runs)
        .where(runs.c.id < run_id, runs.c.state.in_(COMPLETED_STATES))
        .order_by(runs.c.id.desc())
        .limit(1)
    ).one_or_none()
    if earlier is None:
        return {name: Standing(total=found.total) for name, found in standings.items()}
    counts, last = counts_of(connection, earlier.id), last_count(connection, earlier.id)
    left = {name: standing_of(connection, earlier, counts, name, last) for name in standings}
    # The run before it may be a canary, which counted its own rows only.
    return {
        name: found.model_copy(update={"total": max(found.total, standings[name].total)})
        for name, found in left.items()
    }
