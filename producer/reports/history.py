"""All that there is to tell about a run after it: read from the ledger, each list bounded.

`report.read` gives its state; this adds what happened. The HTML report and the console show it.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, text

from models.engine import current
from models.engine.checks.answers import Summary
from models.engine.schema import target as target_tables
from models.errors import MigrationError
from models.ledger.relations import labels
from models.ledger.tables import (
    LISTED,
    WORKED_ON,
    audit,
    batches,
    quarantine,
    recoveries,
    runs,
    stages,
)
from models.ledger.tables import events as happenings
from models.postgres import database
from models.postgres.database import transaction
from models.postgres.load import parse_limits
from models.reports.run import RunReport
from models.settings import Settings
from producer.reports import differing, happened
from producer.reports import status as report
from producer.reports.progress import is_of_counted_step

MOST_KEYS, MOST_EVENTS, MOST_BUCKETS = 50, 200, 80
_PACKAGES = ("dashboard-migration", "celery", "redis", "sqlalchemy", "psycopg2-binary", "pydantic")
# It may read whole tables.
_SUMMARY_TIMEOUT_MS = 600_000
_HAPPENED = {
    "expired": "leases expired, since a worker died or froze: other workers claimed the batches",
    "lost": "messages were lost: the batches were published again",
    "split": "batches took their workers down again and again: split into smaller ones",
}


@dataclass(frozen=True)
class Pace:
    """Rows a second by stage, in `width` seconds of work each, from the run's start on."""

    width: float
    rates: dict[str, list[float]]


@dataclass(frozen=True)
class Durations:
    """How long the batches of a stage took, in seconds; `again`: attempts beyond the first."""

    stage: str
    batches: int
    low: float
    median: float
    high: float
    longest: float
    again: int


@dataclass(frozen=True)
class Reason:
    """Quarantined rows for one reason, and the first of their keys as `entity:key`."""

    name: str
    message: str
    rows: int
    accepted: int
    keys: list[str]


@dataclass(frozen=True)
class Event:
    """An operator's `action`, a new `state` of the run, a `stage`'s end, or a `fault`."""

    at: datetime
    kind: str
    what: str
    who: str = ""


@dataclass(frozen=True)
class Record:
    """A run, from its outcome to its settings."""

    database: str
    report: RunReport
    started_at: datetime | None
    finished_at: datetime | None
    pace: Pace
    durations: list[Durations]
    reasons: list[Reason]
    differences: list[dict[str, Any]]
    summary: Summary | None
    events: list[Event]
    versions: dict[str, str]
    settings: dict[str, str]


def read(engine: Engine, settings: Settings, run_id: str | None) -> Record:
    """Everything about a run (the newest one by default); raises UnknownRun."""
    found = report.read(engine, run_id)
    assert found.run_id
    summary = _summary(engine, settings, found.run_id)
    with transaction(engine) as connection:
        run = connection.execute(sa.select(runs).where(runs.c.id == found.run_id)).one()
        return Record(
            database=database.name_of(engine),
            report=found,
            started_at=run.started_at,
            finished_at=run.finished_at,
            pace=pace(connection, run),
            durations=durations(connection, run.id),
            reasons=reasons(connection, run.id),
            differences=differing.first(engine, run.id),
            summary=summary,
            events=events(connection, run.id),
            versions=_versions(connection),
            settings={
                "rows a batch": run.batch_size,
                "constants": ", ".join(f"{k}={v}" for k, v in sorted(run.grants.items())),
                "legacy tables": labels(run.relations) if run.relations else ", ".join(run.tables),
                "throttle": _limits(settings, run.throttle),
            },
        )


def pace(connection: Connection, run: Any) -> Pace:
    """The run's pace over time, in at most MOST_BUCKETS parts."""
    is_done = (batches.c.state == "done", batches.c.window > 0)
    mine = (batches.c.run_id == run.id, *is_done, is_of_counted_step(batches.c.step))
    past = sa.extract("epoch", batches.c.finished_at - run.started_at)
    since: sa.ColumnElement[Any] = past
    for begin, end in _idle(connection, run):
        since -= sa.func.least(sa.func.greatest(past - begin, 0), end - begin)
    last = connection.scalar(sa.select(sa.func.max(since)).where(*mine))
    if not last or float(last) <= 0:
        return Pace(1.0, {})
    width = max(0.5, float(last) / MOST_BUCKETS)
    bucket = sa.cast(sa.func.floor(since / width), sa.Integer).label("bucket")
    count = int(float(last) / width) + 1
    rates: dict[str, list[float]] = {}
    for row in connection.execute(
        sa.select(batches.c.stage, bucket, sa.func.sum(batches.c.rows).label("rows"))
        .join(
            stages, sa.and_(stages.c.run_id == batches.c.run_id, stages.c.name == batches.c.stage)
        )
        .where(*mine, batches.c.rows > 0)
        .group_by(batches.c.stage, stages.c.run_id, stages.c.name, bucket)
        .order_by(*LISTED)
    ):
        rates.setdefault(row.stage, [0.0] * count)[min(row.bucket, count - 1)] = row.rows / width
    return Pace(width, rates)


def _idle(connection: Connection, run: Any) -> list[tuple[float, float]]:
    """When nobody worked on the run, in seconds from its start.

    These are pauses, and the times between an end and a retry.
    """
    at = sa.extract("epoch", happenings.c.at - run.started_at)
    moves = connection.execute(
        sa.select(happenings.c.state, at)
        .where(happenings.c.run_id == run.id, happenings.c.kind == "run")
        .order_by(happenings.c.at, happenings.c.id)
        .limit(MOST_EVENTS)
    ).all()
    return [
        (float(begin), float(end))
        for (state, begin), (_, end) in pairwise(moves)
        if state not in WORKED_ON
    ]


def durations(connection: Connection, run_id: str) -> list[Durations]:
    """The durations of a run's batches by stage, in the stages' order."""
    seconds = sa.extract("epoch", batches.c.finished_at - batches.c.started_at)

    def part(share: float) -> sa.ColumnElement[Any]:
        return sa.func.percentile_cont(share).within_group(seconds)

    found = connection.execute(
        sa.select(
            stages.c.name.label("stage"),
            sa.func.count().label("batches"),
            part(0.05).label("low"),
            part(0.5).label("median"),
            part(0.95).label("high"),
            sa.func.max(seconds).label("longest"),
            sa.func.sum(sa.func.greatest(batches.c.attempt - 1, 0)).label("again"),
        )
        .join(
            batches, sa.and_(stages.c.run_id == batches.c.run_id, stages.c.name == batches.c.stage)
        )
        .where(batches.c.run_id == run_id, batches.c.state == "done")
        .where(batches.c.started_at.is_not(None))
        .group_by(stages.c.run_id, stages.c.name)
        .order_by(*LISTED)
    )
    return [
        Durations(
            stage=row.stage,
            batches=row.batches,
            again=row.again,
            **{name: float(getattr(row, name)) for name in ("low", "median", "high", "longest")},
        )
        for row in found
    ]


def reasons(connection: Connection, run_id: str, most_keys: int = MOST_KEYS) -> list[Reason]:
    """The quarantined rows of a run by reason, the largest first."""
    columns = quarantine.c
    mine = (columns.run_id == run_id, columns.state.in_(("open", "accepted")))
    groups = connection.execute(
        sa.select(
            columns.reason,
            sa.func.min(columns.message).label("message"),
            sa.func.count().label("rows"),
            sa.func.count().filter(columns.state == "accepted").label("accepted"),
        )
        .where(*mine)
        .group_by(columns.reason)
        .order_by(sa.func.count().desc(), columns.reason)
    ).all()
    keys = sa.select(columns.entity + ":" + columns.legacy_key).where(*mine)
    return [
        Reason(
            name=row.reason,
            message=row.message,
            rows=row.rows,
            accepted=row.accepted,
            keys=list(
                connection.scalars(
                    keys.where(columns.reason == row.reason)
                    .order_by(columns.entity, columns.legacy_key)
                    .limit(most_keys)
                )
            )
            if most_keys
            else [],
        )
        for row in groups
    ]


def events(connection: Connection, run_id: str) -> list[Event]:
    """What operators did, how the run moved, when stages ended, and which faults there were."""
    found = [
        Event(row.at, "action", row.action, row.actor)
        for row in connection.execute(
            sa.select(audit.c.at, audit.c.action, audit.c.actor)
            .where(audit.c.run_id == run_id)
            .order_by(audit.c.id.desc())
            .limit(MOST_EVENTS)
        )
    ]
    kinds = {"run": "state", "stage": "stage", "batch": "fault", "stuck": "fault"}
    for row in connection.execute(
        sa.select(happenings)
        .where(happenings.c.run_id == run_id)
        .order_by(happenings.c.id.desc())
        .limit(MOST_EVENTS)
    ):
        found.append(Event(row.at, kinds[row.kind], happened.what(row)))
    for row in connection.execute(
        sa.select(recoveries)
        .where(recoveries.c.run_id == run_id)
        .order_by(recoveries.c.id.desc())
        .limit(MOST_EVENTS)
    ):
        what = f"{_HAPPENED.get(row.kind, row.kind)} ({row.batches:,})"
        found.append(Event(row.at, "fault", what, "reconciler"))
    return sorted(found, key=lambda event: event.at)[-MOST_EVENTS:]


def _summary(engine: Engine, settings: Settings, run_id: str) -> Summary | None:
    """The migration's own table, or why it cannot be told."""
    migration = current.migration()
    try:
        with transaction(engine, statement_timeout_ms=_SUMMARY_TIMEOUT_MS) as connection:
            sources = migration.read(connection, settings)
            target = target_tables.of(migration.schema, sources)
            return migration.summary(connection, sources, target, run_id)
    except MigrationError as missing:
        return Summary("Summary", missing=missing.message)


def _versions(connection: Connection) -> dict[str, str]:
    server = str(connection.scalar(text("SHOW server_version")))
    found = {"PostgreSQL": server, "Python": platform.python_version()}
    return found | {name: version(name) for name in _PACKAGES}


def _limits(settings: Settings, tuned: str | None) -> str:
    limits = settings.throttle if tuned is None else parse_limits(tuned)
    if limits.is_off:
        return "off"
    found = vars(limits).items()
    return ", ".join(f"{name}={value:g}" for name, value in found if isinstance(value, float))
