"""How a run stands at one moment, as PostgreSQL knows it: its open batches, and who blocks them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, text

from models.ledger.claims import is_expired
from models.ledger.tables import WORKED_ON, batches, runs, stages_in_turn, throttled_by
from models.reports.diagnosis import Blocker, OpenStage, QueueState, Work
from producer.broker.messages import QUEUES, Message
from producer.broker.snapshot import Broker
from producer.reports import status

MOST_ERRORS = 5


@dataclass(frozen=True)
class Ledger:
    """A run, its stages in order, and its batches that are not done, by id."""

    run: Any
    now: datetime
    stages: list[Any]
    batches: dict[int, Any]
    throttled_by: str | None
    # A rollback of the run has begun: nothing else can be done to it.
    is_undone: bool

    @property
    def is_moving(self) -> bool:
        """Whether somebody should be working on the run."""
        return self.run.state in WORKED_ON

    def of(self, *states: str) -> list[Any]:
        """The batches in these states."""
        return [batch for batch in self.batches.values() if batch.state in states]

    @property
    def due(self) -> list[str]:
        """Stages whose next step could be taken now: their turn has come, nothing is open."""
        left = [stage for stage in self.stages if stage.state != "done"]
        busy = {batch.stage for batch in self.of("pending", "running")}
        return [
            stage.name
            for stage in left
            if stage.position == left[0].position and stage.name not in busy
        ]


def ledger(connection: Connection, run_id: str | None) -> Ledger:
    """Read the ledger; raises UnknownRun."""
    run = status.find_run(connection, run_id)
    now = sa.func.clock_timestamp()
    moment = connection.execute(sa.select(now)).scalar_one()
    in_order = connection.execute(stages_in_turn(run))
    columns = batches.c
    still = connection.execute(
        sa.select(
            *(columns.run_id, columns.id, columns.stage, columns.step, columns.state),
            *(columns.attempt, columns.worker, columns.error),
            columns.published_at,
            is_expired().label("expired"),
            sa.extract("epoch", columns.lease_until - now).label("lease"),
            sa.extract("epoch", now - columns.published_at).label("age"),
        )
        .where(columns.run_id == run.id, columns.state != "done")
        .order_by(columns.id)
    )
    by_id = {batch.id: batch for batch in still}
    throttled = connection.scalar(sa.select(throttled_by).where(runs.c.id == run.id))
    is_undone = status.has_rollback_begun(connection, run.id)
    return Ledger(run, moment, list(in_order), by_id, throttled, is_undone)


def open_stages(found: Ledger) -> list[OpenStage]:
    """The stages that are not done and whose turn has come, with their batches counted."""
    result = []
    for stage in found.stages:
        mine = [batch for batch in found.batches.values() if batch.stage == stage.name]
        if stage.state == "done" or not (mine or stage.name in found.due):
            continue
        pending = [batch for batch in mine if batch.state == "pending"]
        claimed = [batch for batch in mine if batch.state == "running"]
        counted = Counter(_standing(batch) for batch in mine)
        ages = [float(batch.age) for batch in pending if batch.age is not None]
        errors = dict.fromkeys(batch.error for batch in mine if batch.error)
        result.append(
            OpenStage(
                name=stage.name,
                state=stage.state,
                **counted,
                oldest_waiting_seconds=round(max(ages), 1) if ages else None,
                errors=list(errors)[:MOST_ERRORS],
                work=[
                    Work(
                        batch_id=batch.id,
                        worker=batch.worker,
                        attempt=batch.attempt,
                        lease_seconds=round(float(batch.lease), 1),
                    )
                    for batch in claimed
                ],
            )
        )
    return result


def _standing(batch: Any) -> str:
    if batch.state == "pending":
        if was_handed_back(batch):
            return "handed_back"
        return "waiting" if batch.published_at is not None else "unpublished"
    return "expired" if batch.expired else str(batch.state)


def was_handed_back(batch: Any) -> bool:
    """Whether a worker gave the batch back, with an error, since an operator touched it last."""
    return bool(batch.state == "pending" and batch.error)


def queues(found: Ledger, seen: Broker) -> dict[str, QueueState]:
    """The queues, ledger and Redis side by side."""
    wait = Counter(message_of(batch).queue for batch in found.of("pending"))
    serve = Counter(queue for worker in seen.workers for queue in worker.queues)
    return {
        name: QueueState(batches=wait[name], messages=seen.messages.get(name), workers=serve[name])
        for name in QUEUES
    }


def message_of(batch: Any) -> Message:
    """The message that wakes a worker for a batch."""
    return Message(batch.run_id, batch.id, batch.stage, batch.step)


# The first word of a query tells what it does; the rest may hold data.
_BLOCKERS = text(r"""
SELECT p.pid, nullif(b.application_name, '') AS application, b.state,
  upper(substring(b.query FROM '^\s*([[:alpha:]]+)')) AS command,
  coalesce(round(extract(epoch FROM clock_timestamp() - coalesce(b.xact_start, b.backend_start))
    ::numeric, 1), 0) AS seconds,
  count(DISTINCT w.pid) AS waiting
FROM pg_stat_activity w
CROSS JOIN LATERAL unnest(pg_blocking_pids(w.pid)) AS p(pid)
LEFT JOIN pg_stat_activity b ON b.pid = p.pid
WHERE w.application_name = 'migration' AND w.datname = current_database()
  AND b.application_name IS DISTINCT FROM 'migration'
GROUP BY 1, 2, 3, 4, 5 ORDER BY 5 DESC, 1
""")


def blockers(connection: Connection) -> list[Blocker]:
    """Sessions that are not ours and that ours wait for."""
    return [Blocker(**row._mapping) for row in connection.execute(_BLOCKERS)]
