"""A run gives way to the database: a real standby stands still, a transaction stays open."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from producer import embedded
from producer.demo import sample
from producer.runs.reconciler import LOST_SECONDS
from tests.acceptance.conftest import COMMAND_SECONDS, Product, batches, count
from tests.driving import scalar
from tests.standby import is_streaming, say, standby
from tests.wait import PATIENCE_SECONDS, until

LIMIT_SECONDS = 2
SMALL = {"MIGRATION_BATCH_SIZE": "25"}


@pytest.mark.long
def test_a_standby_that_falls_behind_stops_the_dispatching_until_it_has_caught_up(
    product: Product, servers: embedded.Servers, _environment: Path
) -> None:
    _load(product, 4_000)
    limits = {"MIGRATION_THROTTLE": f"lag={LIMIT_SECONDS}"}
    with standby(_environment) as replica, product.worker(**limits):
        until(lambda: is_streaming(product.engine))
        run = product.start("enqueue-all", "--wait", "--json", **SMALL)
        until(lambda: batches(product, "done") > 20)
        say(replica, "SELECT pg_wal_replay_pause()")
        until(lambda: product.run("status", "--json").json["throttled"])
        held = product.run("status", "--json").json
        assert "replication lag" in held["throttled_by"] and held["state"] == "running"
        found = {f["kind"]: f for f in product.run("doctor", "--json").json["findings"]}
        assert "replication lag" in found["throttled"]["message"] and "no_worker" not in found
        # Both of the worker's processes wait, for longer than a message may lie unclaimed.
        until(lambda: batches(product, "running") == 0)
        begun = "SELECT count(*) FROM migration.batches WHERE started_at IS NOT NULL"
        stopped, so_far = _now(product.engine), count(product, begun)
        until(lambda: (_now(product.engine) - stopped).total_seconds() > LOST_SECONDS + 2)
        assert count(product, begun) == so_far
        say(replica, "SELECT pg_wal_replay_resume()")
        out, err = run.communicate(timeout=COMMAND_SECONDS)
    ended = json.loads(out)
    assert (run.returncode, ended["state"]) == (3, "completed_with_quarantine")
    assert "Throttled: replication lag" in err and "No worker" not in err
    # Nobody took it for dead: nothing was claimed twice, split or given back.
    assert count(product, "SELECT count(*) FROM migration.batches WHERE attempt > 1") == 0
    assert count(product, "SELECT max(lapses) FROM migration.batches") == 0


@pytest.mark.long
def test_a_long_transaction_of_somebody_else_holds_the_run_back_until_it_ends(
    product: Product,
) -> None:
    _load(product, 300)
    with product.engine.connect() as other:
        other.execute(text("SET application_name = 'a report'"))
        other.execute(text("SELECT txid_current()"))
        until(lambda: _is_older(product.engine, 1))
        with product.worker(MIGRATION_THROTTLE="transaction=1"):
            run = product.start("enqueue-all", "--wait", "--json")
            until(lambda: batches(product, "pending") and _is_held(product))
            assert batches(product, "done") == 0
            other.rollback()
            out, _ = run.communicate(timeout=COMMAND_SECONDS)
    assert json.loads(out)["state"] == "completed_with_quarantine"


@pytest.mark.long
def test_a_worker_that_is_told_to_stop_while_it_waits_gives_its_message_back(
    product: Product,
) -> None:
    _load(product, 300)
    limits = {"MIGRATION_THROTTLE": "transaction=1"}
    with product.engine.connect() as other:
        other.execute(text("SET application_name = 'a report'"))
        other.execute(text("SELECT txid_current()"))
        until(lambda: _is_older(product.engine, 1))
        with product.worker(**limits) as worker:
            run = product.start("enqueue-all", "--wait", "--json")
            until(lambda: batches(product, "pending") and _is_held(product))
            worker.terminate()
            assert worker.wait(PATIENCE_SECONDS) == 0
        other.rollback()
        with product.worker(**limits):
            out, _ = run.communicate(timeout=COMMAND_SECONDS)
    assert json.loads(out)["state"] == "completed_with_quarantine"
    assert count(product, "SELECT count(*) FROM migration.batches WHERE attempt > 1") == 0


@pytest.mark.parametrize(("word", "goes"), [("go", True), ("stop", False)])
def test_a_signal_that_cannot_be_read_counts_as_the_setting_says(
    product: Product, word: str, goes: bool
) -> None:
    _load(product, 200)
    role = f"blind_{product.engine.url.database}"
    with product.engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE {role} LOGIN"))
        connection.execute(
            text(f"GRANT CREATE ON DATABASE {product.engine.url.database} TO {role}")
        )
        connection.execute(text(f"GRANT CREATE ON SCHEMA public TO {role}"))
        for table in sample.TABLES:
            connection.execute(text(f"ALTER TABLE {table} OWNER TO {role}"))
    product.environment["DATABASE_URL"] = product.environment["DATABASE_URL"].replace(
        "postgres@", f"{role}@"
    )
    try:
        # A session of somebody else, whose transaction that role may not see.
        with (
            product.engine.connect() as other,
            product.worker(MIGRATION_THROTTLE=f"unreadable={word}"),
        ):
            other.execute(text("SET application_name = 'hidden'"))
            run = product.start("enqueue-all", "--wait", "--json")
            if not goes:
                until(lambda: _is_held(product))
                held = product.run("status", "--json").json["throttled_by"]
                assert held == "the oldest transaction of others cannot be read"
                assert product.run("cancel", "--yes").status == 0
            run.communicate(timeout=COMMAND_SECONDS)
            assert (batches(product, "done") > 0) is goes
    finally:
        with product.engine.begin() as connection:
            connection.execute(text(f"DROP OWNED BY {role} CASCADE"))
            connection.execute(text(f"DROP ROLE {role}"))


def _load(product: Product, users: int) -> None:
    with product.engine.begin() as connection:
        sample.load(connection, users)


def _is_held(product: Product) -> bool:
    query = "SELECT count(*) FROM migration.runs WHERE throttled_by IS NOT NULL"
    return count(product, query) == 1


def _is_older(engine: Engine, seconds: int) -> bool:
    oldest = (
        "SELECT max(extract(epoch FROM clock_timestamp() - xact_start)) FROM pg_stat_activity"
        " WHERE application_name = 'a report'"
    )
    return (scalar(engine, oldest) or 0) > seconds


def _now(engine: Engine):  # type: ignore[no-untyped-def]
    return scalar(engine, "SELECT clock_timestamp()")
