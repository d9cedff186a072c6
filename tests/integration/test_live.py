"""What a run shows of itself comes from the ledger: its workers, its batches, its repairs."""

from __future__ import annotations

import pytest
import redis
from sqlalchemy import Engine

from models.ledger import claims
from models.ledger.claims import LEASE_SECONDS
from models.postgres.database import transaction
from models.reports.run import RunReport
from models.settings import Settings
from producer.reports import status
from producer.runs import advance, reconciler
from producer.runs.reconciler import LOST_SECONDS
from tests.driving import change, scalar, start

USERS = 60


def claim(engine: Engine, run_id: str, worker: str) -> int:
    """Claim the first batch that waits, as that worker."""
    batch_id = int(scalar(engine, "SELECT min(id) FROM migration.batches WHERE state = 'pending'"))
    with transaction(engine) as connection:
        assert claims.claim(connection, run_id, batch_id, worker)
    return batch_id


def look(engine: Engine) -> RunReport:
    found = status.read(engine, None)
    assert found.live is not None
    return found


def test_a_worker_shows_with_its_batch_and_goes_when_it_is_gone(
    engine: Engine, settings: Settings
) -> None:
    run_id = start(engine, settings)
    advance.advance(engine, settings, run_id)
    batch_id = claim(engine, run_id, "here/1")
    (hand,) = look(engine).live.hands  # type: ignore[union-attr]
    assert (hand.worker, hand.batch_id, hand.stage) == ("here/1", batch_id, "organization")
    assert hand.attempt == 1
    length = "SELECT extract(epoch FROM lease_until - started_at) FROM migration.batches"
    assert scalar(engine, f"{length} WHERE id = {batch_id}") == pytest.approx(LEASE_SECONDS, abs=1)
    change(engine, "UPDATE migration.batches SET lease_until = now() + interval '1 day'")
    (hand,) = look(engine).live.hands  # type: ignore[union-attr]
    assert 80_000 < (hand.lease_seconds or 0) <= 86_400
    change(
        engine,
        "UPDATE migration.batches SET state = 'done', finished_at = now() - interval '5 seconds'"
        " WHERE state = 'running'",
    )
    (hand,) = look(engine).live.hands  # type: ignore[union-attr]
    assert (hand.batch_id, hand.batches) == (None, 1)
    assert hand.seconds >= 5
    change(engine, "UPDATE migration.batches SET finished_at = finished_at - interval '1 minute'")
    assert look(engine).live.hands == []  # type: ignore[union-attr]


def test_the_reconciler_leaves_a_word_on_what_it_set_right_and_none_on_calm_rounds(
    engine: Engine, settings: Settings
) -> None:
    run_id = start(engine, settings)
    advance.advance(engine, settings, run_id)
    reconciler.tick(engine, settings)
    assert look(engine).live.recovery is None  # type: ignore[union-attr]
    claim(engine, run_id, "dead/1")
    change(engine, "UPDATE migration.batches SET lease_until = now() - interval '1 second'")
    reconciler.tick(engine, settings)
    found = look(engine).live.recovery  # type: ignore[union-attr]
    assert found and (found.kind, found.batches) == ("expired", 1)
    change(
        engine,
        "UPDATE migration.batches SET published_at = published_at"
        f" - interval '{LOST_SECONDS + 1} seconds' WHERE state = 'pending'",
    )
    from producer.broker.queue import app

    # The channel's own client may still wait for an answer.
    with (
        app.connection_or_acquire() as connection,
        connection.default_channel.conn_or_acquire() as client,
    ):
        client.flushdb()
    reconciler.tick(engine, settings)
    found = look(engine).live.recovery  # type: ignore[union-attr]
    assert found and found.kind == "lost"


def test_what_is_shown_is_the_same_after_redis_was_flushed(
    engine: Engine, finished: RunReport, redis_url: str
) -> None:
    before = status.read(engine, None)
    client = redis.Redis.from_url(redis_url)
    client.flushall()
    client.close()
    assert status.read(engine, None) == before
    assert before.progress == 1.0
