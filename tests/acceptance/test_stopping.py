"""A worker that is told to stop ends within its grace time, and no batch pays for it."""

from __future__ import annotations

import signal

import pytest
from sqlalchemy import text

from models.settings import load
from producer.runs import advance
from tests import variants
from tests.acceptance.conftest import COMMAND_SECONDS, Product, batches, count
from tests.driving import start
from tests.wait import PATIENCE_SECONDS, until
from worker import batch, shutdown
from worker.lease import LOOK_SECONDS

# After so long it kills.
DOCKER_SECONDS = 10
WAITS = "SELECT count(*) FROM migration.batches WHERE state = 'pending'"


def test_the_grace_time_leaves_half_of_what_docker_gives() -> None:
    assert shutdown.GRACE_SECONDS + LOOK_SECONDS < DOCKER_SECONDS * 0.6


def pending(product: Product) -> list[int]:
    query = "SELECT id FROM migration.batches WHERE state = 'pending' AND stage = 'organization'"
    with product.engine.connect() as connection:
        return list(connection.scalars(text(query)))


def lapses(product: Product) -> int:
    return count(product, "SELECT sum(lapses + hand_backs) FROM migration.batches")


@pytest.mark.long
def test_a_batch_that_waits_for_a_lock_is_handed_back_in_time(product: Product) -> None:
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, 100)
    settings = load()
    run_id = start(product.engine, settings)
    while not count(product, f"{WAITS} AND step = 'users'"):
        advance.advance(product.engine, settings, run_id)
        for batch_id in pending(product):
            batch.run(product.engine, settings, run_id, batch_id, "test")
        advance.advance(product.engine, settings, run_id)
    waiting = product.start("enqueue-all", "--wait", "--json")
    with product.engine.connect() as application:
        application.execute(text("UPDATE users SET full_name = full_name"))
        with product.worker() as first:
            until(
                lambda: count(
                    product,
                    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                    " AND datname = current_database()",
                )
            )
            first.send_signal(signal.SIGTERM)
            # The application holds its lock all the while.
            first.wait(PATIENCE_SECONDS)
        assert batches(product, "running") == 0
        assert count(product, f"{WAITS} AND step = 'users'") == 1
        application.rollback()
    assert lapses(product) == 0
    with product.worker():
        _, err = waiting.communicate(timeout=COMMAND_SECONDS)
    assert waiting.returncode == 3, err


@pytest.mark.long
def test_a_worker_that_stops_amid_its_work_costs_no_lease(product: Product) -> None:
    product.environment["MIGRATION_BATCH_SIZE"] = "20"
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, 400)
    waiting = product.start("enqueue-all", "--wait", "--json")
    done = 0
    for _ in range(3):
        with product.worker() as worker:
            until(lambda: batches(product, "done") > done + 5 or waiting.poll() is not None)  # noqa: B023
            worker.send_signal(signal.SIGTERM)
            worker.wait(PATIENCE_SECONDS)
        done = batches(product, "done")
    assert lapses(product) == 0
    assert batches(product, "running") == 0
    with product.worker():
        _, err = waiting.communicate(timeout=COMMAND_SECONDS)
    assert waiting.returncode == 3, err
