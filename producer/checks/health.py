"""Whether all that the migration and the dashboard need answers: the guide's health check."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import Engine

from models.ledger import sums
from models.ledger.tables import SCHEMA, WORKED_ON, runs, throttled_by
from models.postgres.database import check_reachable, transaction
from models.reports.checks import Check
from models.reports.words import number
from models.settings import DEFAULT_FLOWER_URL, Settings
from producer.broker import readiness, snapshot
from producer.checks import integrity
from producer.checks.http import ask_all
from producer.checks.verdicts import failed, look, ok
from producer.runs.reconciler import queue_lengths

URL_SECONDS = 5.0
# For all rules together: a monitor may ask every minute.
INTEGRITY_SECONDS = 5
INTEGRITY_ROWS = 1_000_000
# A batch that waits for so long, with workers there, is not drained.
STUCK_SECONDS = 120


def examine(engine: Engine, settings: Settings) -> list[Check]:
    """One verdict a thing; none of them takes longer than its limit."""
    return [
        look("database", lambda: _database(engine), _unanswered),
        look("redis", _redis, _unanswered),
        look("workers", lambda: _workers(engine), _unanswered),
        look("queues", lambda: _queues(engine), _unanswered),
        *integrity.examine(engine, settings, seconds=INTEGRITY_SECONDS, most_rows=INTEGRITY_ROWS),
        _flower(settings),
        *_urls(settings),
    ]


def _unanswered(message: str) -> Check:
    return failed(message, "See DATABASE_URL.")


def _database(engine: Engine) -> Check:
    check_reachable(engine)
    with transaction(engine, statement_timeout_ms=5_000) as connection:
        connection.scalar(sa.text("SELECT 1"))
        is_replica = connection.scalar(sa.text("SELECT pg_is_in_recovery()"))
    if is_replica:
        return failed("answers, but it is a replica", "Connect to the primary.")
    return ok("answers")


def _redis() -> Check:
    readiness.require()
    return ok("answers")


def _workers(engine: Engine) -> Check:
    """Without a run under way, no worker is no fault."""
    if names := snapshot.answers("ping", snapshot.PING_SECONDS):
        return ok(f"{number(len(names), 'worker')}: {', '.join(sorted(names))}")
    is_needed = _open_run(engine) is not None
    return Check(
        verdict="failed" if is_needed else "unknown",
        found="none answers",
        hint="Start one: celery -A worker worker" if is_needed else "No run is under way.",
    )


def _open_run(engine: Engine) -> Any:
    with transaction(engine) as connection:
        if not connection.scalar(sa.select(sa.func.to_regclass(f"{SCHEMA}.runs"))):
            return None
        return connection.execute(
            sa.select(runs.c.id, runs.c.state, throttled_by.label("throttled_by")).where(
                runs.c.state.in_(WORKED_ON)
            )
        ).one_or_none()


def _queues(engine: Engine) -> Check:
    """Whether batches that wait are taken: by the ledger, which knows also what Redis lost."""
    run = _open_run(engine)
    waiting = sum(queue_lengths().values())
    if run is None:
        return ok(f"{number(waiting, 'message')}; no run is under way")
    of, now = sums.batch_totals().c, sa.func.clock_timestamp()
    published = sa.func.min(of.published_at).filter(of.state == "pending")
    with transaction(engine) as connection:
        oldest, done = connection.execute(
            sa.select(
                sa.extract("epoch", now - published),
                sa.extract("epoch", now - sa.func.max(of.finished_at)),
            ),
            {"of_run": run.id},
        ).one()
    found = f"{number(waiting, 'message')}; the oldest batch waits {oldest or 0:,.0f} s"
    if run.throttled_by:
        return ok(f"{found}; throttled: {run.throttled_by}")
    if oldest and oldest > STUCK_SECONDS and (done is None or done > STUCK_SECONDS):
        return failed(found, "See what it waits for: producer doctor")
    return ok(found)


def _flower(settings: Settings) -> Check:
    (found,) = ask_all([f"{settings.flower_url.rstrip('/')}/healthcheck"], URL_SECONDS)
    is_usual = settings.flower_url == DEFAULT_FLOWER_URL
    if not found.is_right and found.status is None and is_usual:
        return Check(
            name="flower",
            verdict="unknown",
            found=f"none at {DEFAULT_FLOWER_URL}",
            hint="Set MIGRATION_FLOWER_URL, or start it: celery -A worker flower",
            seconds=found.seconds,
        )
    return _of("flower", found.is_right, found.said, found.seconds)


def _urls(settings: Settings) -> list[Check]:
    if not settings.api_urls:
        return [
            Check(
                name="api",
                verdict="unknown",
                found="no URL to ask",
                hint="Set MIGRATION_API_URLS to the dashboard's endpoints.",
            )
        ]
    return [
        _of(answer.label, answer.is_right, answer.said, answer.seconds)
        for answer in ask_all(list(settings.api_urls), URL_SECONDS)
    ]


def _of(name: str, is_right: bool, said: str, seconds: float) -> Check:
    return Check(name=name, verdict="ok" if is_right else "failed", found=said, seconds=seconds)
