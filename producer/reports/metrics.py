"""The newest run as Prometheus reads it: the figures of `producer status`, and of its batches.

All of it comes from the ledger at the moment of the scrape, so it is right after any restart, and
also after Redis was flushed. Its cost grows neither with the rows nor with the batches.
"""

from __future__ import annotations

import signal
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from models.errors import Misconfigured, UnknownRun
from models.ledger import sums
from models.ledger.tables import BATCH_TRANSITIONS, RECONCILIATION, VERIFICATION
from models.postgres.database import classify, transaction
from models.reports.run import RunReport
from producer.broker.messages import QUEUES, Message
from producer.logs import Log
from producer.reports import status
from producer.reports.progress import is_of_counted_step

# A scrape that takes longer is given up: Prometheus waits for ten seconds.
TIMEOUT_MS = 8_000
RATE_SECONDS = sums.RECENT_SECONDS
EXPIRED = "expired"
log = Log("migration.metrics")


class Ledger(Collector):
    """What a registry of prometheus-client collects; safe for several scrapes at a time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """All metrics; only `migration_ledger_up 0` while the database does not answer."""
        found: list[Metric] = []
        try:
            newest = status.read(self._engine, None)
            found = [*_of_report(newest), *_of_batches(_groups(self._engine, newest))]
            is_up = True
        except UnknownRun:
            is_up = True
        except DBAPIError as failure:
            log.warning("no metrics", error=classify(failure).message)
            is_up = False
        yield _gauge("ledger_up", "Whether the ledger can be read", [], [((), is_up)])
        yield from found


def registry(engine: Engine) -> CollectorRegistry:
    """A registry that holds the ledger's metrics and nothing of the process."""
    made = CollectorRegistry()
    made.register(Ledger(engine))
    return made


def serve(engine: Engine, host: str, port: int) -> None:
    """Answer scrapes until SIGTERM or Ctrl-C; raises Misconfigured for an address in use."""
    try:
        server, thread = start_http_server(port, host, registry(engine))
    except OSError as failure:
        raise Misconfigured(
            f"No metrics at {host}:{port}: {failure.strerror}", hint="Choose another --port."
        ) from None
    # The first process of a container is not ended by the signal alone.
    signal.signal(signal.SIGTERM, lambda *_: server.shutdown())
    thread.join()
    server.server_close()


def _of_report(found: RunReport) -> Iterator[Metric]:
    run = [((found.run_id, found.state), 1)]
    yield _gauge("run_info", "The newest run and its state", ["run", "state"], run)
    yield _gauge("run_seconds", "How long the run has taken", [], [((), found.seconds)])
    yield _gauge(
        "throttled",
        "Whether workers start no batch",
        [],
        [((), found.throttled)],
    )
    if found.eta_seconds is not None:
        yield _gauge("eta_seconds", "Seconds left", [], [((), found.eta_seconds)])
    yield _gauge(
        "legacy_rows",
        "Legacy rows, and how they stand",
        ["entity", "state"],
        [
            ((entity, state), getattr(standing, state))
            for entity, standing in found.entities.items()
            for state in ("total", "migrated", "quarantined")
        ],
    )
    yield _gauge(
        "rows_written",
        "Rows that the run wrote",
        ["table"],
        [((table,), count) for table, count in found.rows.items()],
    )
    for name, amount in found.amounts.items():
        yield _gauge(name, f"{name.replace('_', ' ').capitalize()} in this run", [], [((), amount)])
    stages = found.stages
    info = [((stage.name, stage.state), 1) for stage in stages]
    yield _gauge("stage_info", "The stages and their states", ["stage", "state"], info)
    seconds = [((stage.name,), stage.seconds) for stage in stages]
    yield _gauge("stage_seconds", "How long a stage has taken", ["stage"], seconds)
    yield _gauge(
        "stage_rows",
        "Rows that a stage goes through",
        ["stage", "state"],
        [
            ((stage.name, state), count)
            for stage in stages
            for state, count in (("done", stage.rows), ("left", stage.rows_total - stage.rows))
        ],
    )
    discrepancies = [
        ((VERIFICATION,), found.verification.differences),
        ((RECONCILIATION,), found.reconciliation.discrepancies),
    ]
    yield _gauge("discrepancies", "What the two checks found", ["stage"], discrepancies)
    reasons = [((reason,), count) for reason, count in found.quarantine.items()]
    yield _gauge("quarantined_rows", "Quarantined rows and open", ["reason"], reasons)


def _groups(engine: Engine, found: RunReport) -> Sequence[Any]:
    """The run's batches by stage, step and state."""
    columns, now = sums.batch_totals().c, sa.func.clock_timestamp()
    is_one = columns.durations.is_(None)
    recent = is_one & (columns.finished_at > now - sa.text(f"interval '{RATE_SECONDS} seconds'"))
    is_done = columns.state == "done"
    # No worker holds a batch whose lease expired.
    is_expired = (columns.state == "running") & (columns.lease_until < now)
    state = sa.case((is_expired, EXPIRED), else_=columns.state).label("state")

    def total(value: Any, *of: Any) -> Any:
        return sa.func.coalesce(sa.func.sum(value).filter(*(of or [sa.true()])), 0)

    def up_to(end: float) -> Any:
        known = sa.cast(columns.durations[str(end)].astext, sa.BigInteger)
        return sa.func.coalesce(known, sa.cast(columns.seconds <= end, sa.Integer))

    query = sa.select(
        columns.stage,
        columns.step,
        state,
        total(columns.batches).label("batches"),
        sa.func.count(columns.published_at).label("published"),
        sa.extract("epoch", now - sa.func.min(columns.published_at)).label("oldest"),
        sa.extract("epoch", now - sa.func.max(columns.finished_at)).label("newest"),
        total(columns.attempts).label("attempts"),
        total(columns.expiries).label("expiries"),
        total(columns.republished).label("republished"),
        total(columns.seconds, is_done).label("seconds"),
        total(columns.rows, is_done, recent, is_of_counted_step(columns.step)).label("recent_rows"),
        *(total(up_to(end)).label(f"le_{end}") for end in sums.DURATIONS),
    ).group_by(columns.stage, columns.step, state)
    with transaction(engine, statement_timeout_ms=TIMEOUT_MS) as connection:
        return connection.execute(query, {"of_run": found.run_id}).all()


def _of_batches(groups: Sequence[Any]) -> Iterator[Metric]:
    by_stage: dict[str, list[Any]] = defaultdict(list)
    for group in groups:
        by_stage[group.stage].append(group)
    states = sorted({end for _, end in BATCH_TRANSITIONS} | {EXPIRED})
    yield _gauge(
        "batches",
        "Batches opened so far",
        ["stage", "state"],
        [
            ((stage, state), sum(group.batches for group in of if group.state == state))
            for stage, of in by_stage.items()
            for state in states
        ],
    )
    for name, what in (("attempts", "Claims of batches"), ("expiries", "Leases that ran out")):
        counter = CounterMetricFamily(f"migration_batch_{name}", what, labels=["stage"])
        for stage, of in by_stage.items():
            counter.add_metric([stage], sum(getattr(group, name) for group in of))
        yield counter
    yield _reconciler(groups)
    rates = [
        ((stage,), float(sum(group.recent_rows for group in of)) / RATE_SECONDS)
        for stage, of in by_stage.items()
    ]
    yield _gauge("rows_per_second", "Rows done in the last minute", ["stage"], rates)
    ages = [float(group.newest) for group in groups if group.newest is not None]
    if ages:
        age = [((), min(ages))]
        yield _gauge("last_batch_age_seconds", "Since the last batch ended", [], age)
    yield _durations(by_stage)
    yield from _queues(groups)


def _reconciler(groups: Sequence[Any]) -> Metric:
    """What the reconciler set right: messages, and batches that took their workers down."""
    counter = CounterMetricFamily(
        "migration_reconciler_actions", "What was set right", labels=["action"]
    )
    counter.add_metric(["published_again"], sum(group.republished for group in groups))
    for action, state in (("split", "split"), ("quarantine", "quarantined")):
        counter.add_metric([action], sum(g.batches for g in groups if g.state == state))
    return counter


def _durations(by_stage: dict[str, list[Any]]) -> Metric:
    """How long the batches took that are done, from their last claim to their commit."""
    histogram = HistogramMetricFamily(
        "migration_batch_seconds", "From a batch's claim to its commit", labels=["stage"]
    )
    for stage, of in by_stage.items():
        done = [group for group in of if group.state == "done"]
        ends = [
            (str(float(end)), sum(group._mapping[f"le_{end}"] for group in done))
            for end in sums.DURATIONS
        ]
        ends.append(("+Inf", sum(group.batches for group in done)))
        histogram.add_metric([stage], ends, float(sum(group.seconds for group in done)))
    return histogram


def _queues(groups: Sequence[Any]) -> Iterator[Metric]:
    """Batches whose message is out and that nobody has claimed, by the queue that serves them."""
    waiting = dict.fromkeys(QUEUES, 0)
    oldest = dict.fromkeys(QUEUES, 0.0)
    for group in groups:
        if group.state == "pending" and group.published:
            queue = Message("", 0, group.stage, group.step).queue
            waiting[queue] += group.published
            oldest[queue] = max(oldest[queue], float(group.oldest))
    lengths = [((queue,), length) for queue, length in waiting.items()]
    yield _gauge("queue_batches", "Batches that wait to be claimed", ["queue"], lengths)
    ages = [((queue,), age) for queue, age in oldest.items()]
    yield _gauge("queue_oldest_seconds", "Age of the oldest message", ["queue"], ages)


def _gauge(
    name: str, what: str, labels: Sequence[str], values: Sequence[tuple[Sequence[Any], Any]]
) -> Metric:
    gauge = GaugeMetricFamily(f"migration_{name}", what, labels=labels)
    for label, value in values:
        gauge.add_metric([str(part) for part in label], float(value))
    return gauge
