"""What a run waits for, and at once what the reconciler would do about it in its own time.

A message only wakes a worker, and the claim decides who works: publishing one too many costs a
look at the ledger, and can neither lose a row nor write it twice.
"""

from __future__ import annotations

from collections import Counter

import sqlalchemy as sa
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from models.errors import MigrationError
from models.ledger import relations
from models.ledger.tables import batches
from models.postgres.database import classify, transaction
from models.reports.diagnosis import Diagnosis, Fixed
from models.settings import Settings
from producer.broker import snapshot
from producer.broker.queue import publish_again
from producer.broker.refusals import of_redis
from producer.broker.snapshot import REDIS_ERRORS, Broker
from producer.checks import slots
from producer.doctor import findings, symptoms
from producer.doctor.findings import Seen
from producer.doctor.symptoms import Ledger, message_of
from producer.runs import advance, reconciler


def examine(
    engine: Engine, settings: Settings, run_id: str | None, *, fixes: bool = True
) -> Diagnosis:
    """Look at a run, fix what can be fixed (if it `fixes`), and say both; raises UnknownRun."""
    # The sessions first: one that waits for a lock gives up after some seconds, and tries again.
    with transaction(engine) as connection:
        before = symptoms.ledger(connection, run_id)
        blockers = symptoms.blockers(connection)
    redis = snapshot.look()
    trouble = ""
    if fixes and before.is_moving and not redis.down and not redis.refuses:
        trouble = _fix(engine, settings, before, redis)
    with transaction(engine) as connection:
        after = symptoms.ledger(connection, before.run.id)
        shortage = slots.shortage(connection, redis.workers)
    fixed = _fixed(before, after) if fixes else {}
    return Diagnosis(
        run_id=before.run.id,
        state=after.run.state,
        redis=redis.word,
        stages=symptoms.open_stages(before),
        queues=symptoms.queues(before, redis),
        unacknowledged=dict(Counter(task for task, _ in redis.held)),
        chords=redis.chords,
        workers=redis.workers,
        blockers=blockers,
        findings=findings.of(Seen(before, after, redis, blockers, trouble, fixed, shortage)),
        fixed=list(fixed.values()),
    )


def _fix(engine: Engine, settings: Settings, before: Ledger, redis: Broker) -> str:
    """The reconciler's round without its patience; returns why it stopped, if it did."""
    try:
        # Before anything is touched: the tick would find it out halfway.
        with transaction(engine) as connection:
            relations.require(before.run, settings, relations.read(connection, settings))
        reconciler.tick(engine, settings)
        _publish_lost(engine, before, redis)
        advance.advance(engine, settings, before.run.id)
    except REDIS_ERRORS as failure:
        return f"Redis: {of_redis(failure)}"
    except DBAPIError as failure:
        return f"PostgreSQL: {classify(failure).message}"
    except MigrationError as failure:
        return failure.message
    return ""


def _publish_lost(engine: Engine, before: Ledger, redis: Broker) -> None:
    """Publish what has no message left, without waiting until the reconciler is sure of it."""
    held = {batch_id for _, batch_id in redis.held}
    lost = {
        batch.id: message_of(batch)
        for batch in before.of("pending")
        if batch.published_at is not None
        and batch.id not in held
        and redis.messages.get(message_of(batch).queue) == 0
    }
    with transaction(engine) as connection:
        taken = connection.scalars(
            sa.update(batches)
            .where(batches.c.id.in_(list(lost)[: reconciler.MOST_AT_ONCE]))
            # What was published or claimed since is not lost.
            .where(batches.c.state == "pending", batches.c.published_at <= before.now)
            .values(published_at=sa.func.clock_timestamp())
            .returning(batches.c.id)
        ).all()
    publish_again([lost[batch_id] for batch_id in sorted(taken)])


def _fixed(before: Ledger, after: Ledger) -> dict[str, Fixed]:
    """What was stuck before and continues now, by kind."""
    if not before.is_moving:
        return {}
    now = after.batches
    newer = [
        batch
        for batch in before.of("pending", "running")
        if batch.id in now and now[batch.id].published_at not in (None, batch.published_at)
    ]
    waited = [batch for batch in newer if batch.state == "pending"]
    given_up = [
        batch.id
        for batch in before.of("running")
        if batch.expired and batch.id in now and now[batch.id].state == "failed"
    ]
    window = {stage.name: stage.window for stage in before.stages}
    opened = [stage.name for stage in after.stages if stage.window > window[stage.name]]
    kinds = [
        Fixed(kind="reopened", batches=[batch.id for batch in newer if batch.expired]),
        Fixed(kind="given_up", batches=given_up),
        Fixed(kind="published_again", batches=[b.id for b in waited if b.published_at]),
        Fixed(kind="published", batches=[b.id for b in waited if not b.published_at]),
        # Where batches were under way, a chord's body opened the next ones, and not this.
        Fixed(kind="opened", stages=opened if before.due else []),
    ]
    return {entry.kind: entry for entry in kinds if entry.batches or entry.stages}
