"""A run as the ledger knows it: counts, progress by stage, time left."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from models.engine import current
from models.errors import UnknownRun
from models.ledger import audit
from models.ledger.tables import (
    BACK,
    OPEN_STATES,
    RECONCILIATION,
    SCHEMA,
    VERIFICATION,
    WORKED_ON,
    batches,
    conflicts,
    differences,
    quarantine,
    runs,
    stages,
    throttled_by,
)
from models.postgres.database import transaction
from models.reports.error import ErrorReport
from models.reports.run import Reconciliation, RunReport, Stage, Verification
from producer.reports import progress, time_left, workers
from producer.runs import budget


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
        f"{'Several runs have' if found else 'No run has'} an id that begins with {run_id}",
        hint=hint,
    )


def read(engine: Engine, run_id: str | None) -> RunReport:
    """The report of a run; raises UnknownRun."""
    with transaction(engine) as connection:
        run = find_run(connection, run_id)
        return _report(connection, run)


def look(engine: Engine, run_id: str | None) -> RunReport:
    """The same without what its batches counted, which takes most of the time.

    For frequent polling: without the legacy rows' totals and without what was written.
    """
    with transaction(engine) as connection:
        return _report(connection, find_run(connection, run_id), is_whole=False)


def history(engine: Engine, limit: int | None = None) -> list[dict[str, Any]]:
    """All runs, or the newest so many, newest first: id, state, when and how long."""
    with transaction(engine) as connection:
        find_run(connection, None)
        found = connection.execute(
            sa.select(runs.c.id, runs.c.state, runs.c.created_at, runs.c.finished_at)
            .order_by(runs.c.id.desc())
            .limit(limit)
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


def actions(engine: Engine) -> list[dict[str, Any]]:
    """What operators did, newest first."""
    with transaction(engine) as connection:
        return audit.entries(connection)


QUARANTINE_COLUMNS = ("entity", "key", "reason", "message", "attempts", "state")


def quarantined(
    engine: Engine,
    run_id: str | None,
    *,
    reason: str | None = None,
    entity: str | None = None,
    limit: int | None = None,
) -> list[dict[str, Any]]:
    """The rows in a run's quarantine by entity and key, at most `limit` of each reason.

    Their keys are QUARANTINE_COLUMNS.
    """
    columns = quarantine.c
    number = sa.func.row_number().over(
        partition_by=(columns.entity, columns.reason), order_by=columns.legacy_key
    )
    with transaction(engine) as connection:
        run = find_run(connection, run_id)
        wanted = sa.select(
            columns.entity,
            columns.legacy_key.label("key"),
            columns.reason,
            columns.message,
            columns.attempts,
            columns.state,
            number.label("number"),
        ).where(columns.run_id == run.id, columns.state.in_(("open", "accepted")))
        if reason is not None:
            wanted = wanted.where(columns.reason == reason)
        if entity is not None:
            wanted = wanted.where(columns.entity == entity)
        page = wanted.subquery()
        shown = sa.select(*(page.c[name] for name in QUARANTINE_COLUMNS))
        if limit is not None:
            shown = shown.where(page.c.number <= limit)
        found = connection.execute(shown.order_by(page.c.entity, page.c.key))
        return [dict(row._mapping) for row in found]


def first_conflicts(engine: Engine, run_id: str | None, limit: int = 20) -> list[dict[str, Any]]:
    """The first rows and columns that a rollback kept."""
    with transaction(engine) as connection:
        run = find_run(connection, run_id)
        columns = conflicts.c
        found = connection.execute(
            sa.select(
                columns.kind,
                columns.table_name.label("table"),
                columns.row_key.label("key"),
                columns.detail.label("column"),
            )
            .where(columns.run_id == run.id)
            .order_by(columns.table_name, columns.row_key, columns.detail)
            .limit(limit)
        )
        return [dict(row._mapping) for row in found]


def _report(connection: Connection, run: Any, *, is_whole: bool = True) -> RunReport:
    throttled = connection.scalar(sa.select(throttled_by).where(runs.c.id == run.id))
    found = progress.stages_of(connection, run)
    is_undone = _is_undone(found)
    seconds = progress.active_seconds(connection, run.id, of_rollback=is_undone)
    report = RunReport(
        run_id=run.id,
        state=run.state,
        throttled=bool(throttled),
        throttled_by=throttled,
        paused_by=run.paused_by,
        paused_at=run.paused_at and run.paused_at.isoformat(timespec="seconds"),
        selection=run.selection,
        stages=found,
        quarantine=_groups(
            connection,
            sa.select(quarantine.c.reason, sa.func.count())
            .where(quarantine.c.run_id == run.id, quarantine.c.state == "open")
            .group_by(quarantine.c.reason),
        ),
        failures=_groups(
            connection,
            sa.select(
                batches.c.stage + ": " + sa.func.coalesce(batches.c.error, "unknown"),
                sa.func.count(),
            )
            .where(batches.c.run_id == run.id, batches.c.state == "failed")
            .group_by(sa.text("1")),
        ),
        seconds=round(seconds, 3),
    )
    if is_whole:
        _count(connection, run, report)
    if run.state == "rolling_back":
        found = [stage for stage in found if stage.name in current.migration().undo_stages]
    first = run.totals.get(current.migration().first, 0)
    report.progress = time_left.progress(found, first, run.state)
    if run.state in (*OPEN_STATES, "rolling_back"):
        report.live = workers.read(connection, run.id)
    if report.live and run.state in WORKED_ON:
        # A paused run ends when somebody resumes it: nobody knows when.
        report.time_left = time_left.left(found, first, report.live)
    if report.time_left:
        report.eta_seconds = report.time_left.likely
    if run.paused_by == budget.PAUSED_BY:
        report.error = ErrorReport(
            kind="error_budget",
            message=str(run.error),
            hint="Fix what the message names, then: producer retry --wait (or: producer resume)",
        )
    if run.state == "failed":
        report.error = ErrorReport(
            kind="differences" if report.exit_status == 4 else "batch_failed",
            message=str(run.error),
            hint=f"Fix what the message names, then: {continues(is_undone=is_undone)}",
        )
    return report


def _count(connection: Connection, run: Any, report: RunReport) -> None:
    """Add what the batches counted, and what was found to differ, to a run's report."""
    by_name = {stage.name: stage for stage in report.stages}
    counts = progress.counts_of(connection, run.id)
    last_count = progress.last_count(connection, run.id)
    standings = {
        name: progress.standing_of(connection, run, counts, name, last_count)
        for name in map(current.migration().plural, current.migration().counted)
    }
    if _is_undone(report.stages):
        standings = progress.undone(connection, run.id, standings)
    report.entities = standings
    stored = _groups(
        connection,
        sa.select(differences.c.stage, sa.func.count())
        .where(differences.c.run_id == run.id)
        .group_by(differences.c.stage),
    )
    migration = current.migration()
    report.rows = {name: counts.get(("written", name), 0) for name in migration.reported}
    report.amounts = {n: counts.get(("written", n), Decimal(0)) for n in migration.amounts}
    report.verification = Verification(
        state=by_name[VERIFICATION].state,
        rows_checked=counts.get((VERIFICATION, "rows_checked"), 0),
        # A batch counts more than it lists; what no batch has seen is only listed.
        differences=max(counts.get((VERIFICATION, "differences"), 0), stored.get(VERIFICATION, 0)),
        waiting_for_retry=counts.get((VERIFICATION, "waiting"), 0),
    )
    report.reconciliation = Reconciliation(
        state=by_name[RECONCILIATION].state if RECONCILIATION in by_name else "none",
        checked=counts.get((RECONCILIATION, "checked"), 0),
        discrepancies=max(
            counts.get((RECONCILIATION, "discrepancies"), 0), stored.get(RECONCILIATION, 0)
        ),
    )
    report.differences = _groups(
        connection,
        sa.select(
            differences.c.entity
            + " "
            + differences.c.kind
            + " "
            + differences.c.target_table
            + sa.func.coalesce("." + differences.c.detail, ""),
            # Both checks may find the same row.
            sa.func.count(differences.c.legacy_key.distinct()),
        )
        .where(differences.c.run_id == run.id)
        .group_by(sa.text("1")),
    )
    report.conflicts = _groups(
        connection,
        sa.select(
            conflicts.c.table_name
            + sa.func.coalesce("." + sa.func.nullif(conflicts.c.detail, ""), "")
            + " "
            + conflicts.c.kind,
            sa.func.count(),
        )
        .where(conflicts.c.run_id == run.id)
        .group_by(sa.text("1")),
    )
    if run.state == "rolled_back":
        _take_back(report)
    elif report.seconds and not _is_undone(report.stages):
        report.per_second = round(report.first[1].migrated / report.seconds, 1)


def _take_back(report: RunReport) -> None:
    """After a rollback nothing that the run verified is left, and no row but what was kept."""
    report.verification = Verification()
    if report.reconciliation.state != "none":
        report.reconciliation = Reconciliation()
    is_clean = not report.conflicts
    report.rows = {name: 0 if is_clean else max(0, n) for name, n in report.rows.items()}
    zero = Decimal(0)
    report.amounts = {n: zero if is_clean else max(zero, v) for n, v in report.amounts.items()}


def continues(*, is_undone: bool) -> str:
    """The command that continues a failed run, or the failed rollback of one."""
    return f"producer {'rollback' if is_undone else 'retry'} --wait"


def has_rollback_begun(connection: Connection, run_id: str) -> bool:
    """Whether the run has stages of a rollback: nothing else can be done to it then."""
    back = sa.exists().where(stages.c.run_id == run_id, stages.c.direction == BACK)
    return bool(connection.scalar(sa.select(back)))


def _is_undone(found: list[Stage]) -> bool:
    """Whether a rollback of the run has begun."""
    return any(stage.name in current.migration().undo_stages for stage in found)


def _groups(connection: Connection, query: Any) -> dict[str, int]:
    return {str(name): int(count) for name, count in connection.execute(query)}
