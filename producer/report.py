"""A run as the ledger knows it: counts, progress by stage, time left."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from models.database import transaction
from models.errors import UnknownRun
from models.ledger import OPEN_STATES, SCHEMA, batches, differences, quarantine, runs, stages
from models.messages import (
    Batches,
    ErrorReport,
    Reconciliation,
    Rows,
    RunReport,
    Stage,
    Standing,
    Verification,
)
from models.steps import RECONCILIATION, VERIFICATION, steps_of

ENTITIES = {"users": "user", "subscriptions": "subscription", "projects": "project"}
WRITTEN = ("ai_suites", "ai_tools", "tool_assignments", "tool_usage_logs")


def find_run(connection: Connection, run_id: str | None) -> Any:
    """The run of that id (or of that beginning, if only one has it), or the newest one.

    Raises UnknownRun where there is none.
    """
    hint = "See all runs: producer status --history"
    if not connection.scalar(sa.select(sa.func.to_regclass(f"{SCHEMA}.runs"))):
        raise UnknownRun("No run yet", hint="Start one: producer enqueue-all --wait")
    query = sa.select(runs).order_by(runs.c.id.desc())
    if run_id is None:
        newest = connection.execute(query.limit(1)).one_or_none()
        if newest is None:
            raise UnknownRun("No run yet", hint="Start one: producer enqueue-all --wait")
        return newest
    found = connection.execute(query.where(runs.c.id.startswith(run_id, autoescape=True))).all()
    if len(found) == 1 or (found and found[0].id == run_id):
        return found[0]
    raise UnknownRun(
        f"{'Several runs begin' if found else 'No run begins'} with {run_id}", hint=hint
    )


def read(engine: Engine, run_id: str | None) -> RunReport:
    """The report of a run; raises UnknownRun."""
    with transaction(engine) as connection:
        run = find_run(connection, run_id)
        return _report(connection, run)


def history(engine: Engine) -> list[dict[str, Any]]:
    """All runs, newest first: id, state, when and how long."""
    with transaction(engine) as connection:
        find_run(connection, None)
        found = connection.execute(
            sa.select(runs.c.id, runs.c.state, runs.c.created_at, runs.c.finished_at).order_by(
                runs.c.id.desc()
            )
        )
        return [
            {
                "run_id": row.id,
                "state": row.state,
                "created_at": row.created_at.isoformat(timespec="seconds"),
                "finished_at": row.finished_at and row.finished_at.isoformat(timespec="seconds"),
            }
            for row in found
        ]


def quarantined(engine: Engine, run_id: str | None) -> list[dict[str, Any]]:
    """The rows that a run set aside and that stand so still, by entity and key."""
    with transaction(engine) as connection:
        run = find_run(connection, run_id)
        columns = quarantine.c
        found = connection.execute(
            sa.select(
                columns.entity,
                columns.legacy_key.label("key"),
                columns.reason,
                columns.message,
                columns.attempts,
                columns.state,
            )
            .where(columns.run_id == run.id, columns.state.in_(("open", "accepted")))
            .order_by(columns.entity, columns.legacy_key)
        )
        return [dict(row._mapping) for row in found]


def first_differences(engine: Engine, run_id: str | None, limit: int = 20) -> list[dict[str, Any]]:
    """The first differences and discrepancies of a run, row by row."""
    with transaction(engine) as connection:
        run = find_run(connection, run_id)
        columns = differences.c
        found = connection.execute(
            sa.select(
                columns.kind,
                columns.entity,
                columns.legacy_key.label("key"),
                columns.target_table.label("table"),
                columns.detail,
            )
            .where(columns.run_id == run.id)
            .order_by(columns.id)
            .limit(limit)
        )
        return [dict(row._mapping) for row in found]


def _report(connection: Connection, run: Any) -> RunReport:
    now = sa.func.coalesce(runs.c.finished_at, sa.func.clock_timestamp())
    seconds = float(
        connection.scalar(
            sa.select(sa.extract("epoch", now - runs.c.started_at)).where(runs.c.id == run.id)
        )
        or 0
    )
    found = _stages(connection, run)
    by_name = {stage.name: stage for stage in found}
    counts = _counts(connection, run.id)
    verified = by_name[VERIFICATION].state == "done"
    standings = {
        name: _standing(connection, run, counts, name, verified=verified) for name in ENTITIES
    }
    report = RunReport(
        run_id=run.id,
        state=run.state,
        throttled=run.throttled,
        **standings,
        rows=Rows(**{name: counts.get(("written", name), 0) for name in WRITTEN}),
        credits_granted=counts.get(("written", "credits_granted"), Decimal(0)),
        verification=Verification(
            state=by_name[VERIFICATION].state,
            rows_checked=counts.get((VERIFICATION, "rows_checked"), 0),
            differences=counts.get((VERIFICATION, "differences"), 0),
        ),
        reconciliation=Reconciliation(
            state=by_name[RECONCILIATION].state,
            users_checked=counts.get((RECONCILIATION, "users_checked"), 0),
            discrepancies=counts.get((RECONCILIATION, "discrepancies"), 0),
        ),
        stages=found,
        quarantine=_groups(
            connection,
            sa.select(quarantine.c.reason, sa.func.count())
            .where(quarantine.c.run_id == run.id, quarantine.c.state == "open")
            .group_by(quarantine.c.reason),
        ),
        differences=_groups(
            connection,
            sa.select(
                differences.c.entity
                + " "
                + differences.c.kind
                + " "
                + differences.c.target_table
                + sa.func.coalesce("." + differences.c.detail, ""),
                sa.func.count(),
            )
            .where(differences.c.run_id == run.id)
            .group_by(sa.text("1")),
        ),
        seconds=round(seconds, 3),
        users_per_second=round(standings["users"].migrated / seconds, 1) if seconds else 0.0,
    )
    if run.state in OPEN_STATES:
        report.eta_seconds = _eta(found)
    if run.state == "failed":
        report.error = ErrorReport(
            kind="differences" if report.exit_status == 4 else "batch_failed",
            message=str(run.error),
            hint="Mend what the message names, then: producer retry --wait",
        )
    return report


def _stages(connection: Connection, run: Any) -> list[Stage]:
    seconds = sa.extract(
        "epoch",
        sa.func.coalesce(stages.c.finished_at, sa.func.clock_timestamp()) - stages.c.started_at,
    )
    in_state = {
        state: sa.func.count().filter(batches.c.state == state).label(state)
        for state in ("done", "failed")
    }
    rows_done = sa.func.coalesce(
        sa.func.sum(batches.c.rows).filter(batches.c.state == "done", batches.c.key_list.is_(None)),
        0,
    )
    grouped = {
        row.stage: row
        for row in connection.execute(
            sa.select(
                batches.c.stage,
                sa.func.count().label("total"),
                rows_done.label("rows_done"),
                *in_state.values(),
            )
            .where(batches.c.run_id == run.id)
            .group_by(batches.c.stage)
        )
    }
    result = []
    for row in connection.execute(
        sa.select(stages.c.name, stages.c.state, sa.func.coalesce(seconds, 0).label("seconds"))
        .where(stages.c.run_id == run.id)
        .order_by(stages.c.position)
    ):
        found = grouped.get(row.name)
        total = sum(run.totals.get(step.entity, 0) for step in steps_of(row.name) if step.entity)
        done = int(found.rows_done) if found else 0
        result.append(
            Stage(
                name=row.name,
                state=row.state,
                batches=Batches(total=found.total, done=found.done, failed=found.failed)
                if found
                else Batches(),
                rows=done if row.state != "done" else max(done, 0),
                rows_total=max(total, done) if row.state != "done" else done,
                seconds=round(float(row.seconds), 3),
            )
        )
    return result


def _counts(connection: Connection, run_id: str) -> Mapping[tuple[str, str], Any]:
    """Sums of what the batches counted, in one pass over the run's batches."""

    def total(path: str) -> sa.ColumnElement[Any]:
        value = sa.func.sum(sa.cast(batches.c.counts.op("#>>")(path), sa.Numeric))
        return sa.func.coalesce(value, 0)

    paths = {("written", name): f"{{rows,{name}}}" for name in WRITTEN}
    paths["written", "credits_granted"] = "{credits_granted}"
    checked = {
        (VERIFICATION, "rows_checked"): "{rows_checked}",
        (VERIFICATION, "differences"): "{differences}",
        (RECONCILIATION, "users_checked"): "{users_checked}",
        (RECONCILIATION, "discrepancies"): "{discrepancies}",
    }
    standing = {
        (group, f"{name}.{what}"): f"{{{name},{what}}}"
        for group in ("written", VERIFICATION)
        for name in ENTITIES
        for what in ("total", "quarantined")
    }
    is_check = batches.c.stage == VERIFICATION
    columns = []
    for (group, name), path in {**paths, **checked, **standing}.items():
        column = total(path)
        if (group, name) in standing:
            column = sa.func.coalesce(
                sa.func.sum(sa.cast(batches.c.counts.op("#>>")(path), sa.Numeric)).filter(
                    is_check if group == VERIFICATION else ~is_check, batches.c.key_list.is_(None)
                ),
                0,
            )
        columns.append(column.label(f"{group}/{name}"))
    row = connection.execute(sa.select(*columns).where(batches.c.run_id == run_id)).one()
    return {
        (group, name): value if name == "credits_granted" else int(value)
        for label, value in row._mapping.items()
        for group, _, name in [str(label).partition("/")]
    }


def _standing(
    connection: Connection,
    run: Any,
    counts: Mapping[tuple[str, str], Any],
    name: str,
    *,
    verified: bool,
) -> Standing:
    """Once verified: as the verification counted. Before: what the batches have passed so far."""
    entity = ENTITIES[name]
    if not verified:
        seen = counts["written", f"{name}.total"]
        aside = connection.scalar(
            sa.select(sa.func.count())
            .select_from(quarantine)
            .where(quarantine.c.entity == entity, quarantine.c.state.in_(("open", "accepted")))
        )
        total = max(seen, run.totals.get(entity, 0))
        return Standing(total=total, migrated=max(0, seen - aside), quarantined=aside)
    missing = connection.scalar(
        sa.select(sa.func.count(sa.distinct(differences.c.legacy_key))).where(
            differences.c.run_id == run.id,
            differences.c.entity == entity,
            differences.c.kind == "missing",
            differences.c.stage == VERIFICATION,
        )
    )
    total, aside = (counts[VERIFICATION, f"{name}.{what}"] for what in ("total", "quarantined"))
    return Standing(total=total, migrated=total - aside - (missing or 0), quarantined=aside)


def _groups(connection: Connection, query: Any) -> dict[str, int]:
    return {str(name): int(count) for name, count in connection.execute(query)}


def _eta(found: list[Stage]) -> float | None:
    """Seconds left: rows left in each stage at the pace of the stage, or of all stages so far."""
    done = sum(stage.rows for stage in found)
    spent = sum(stage.seconds for stage in found if stage.rows)
    if not done or not spent:
        return None
    left = 0.0
    for stage in found:
        rows_left = stage.rows_total - stage.rows
        pace = stage.rows / stage.seconds if stage.rows and stage.seconds else done / spent
        left += rows_left / pace if stage.state != "done" else 0.0
    return round(left, 1)
