"""Every cause of a standstill, provoked for real: the doctor names it, and fixes what it can."""

from __future__ import annotations

import re
import time
from contextlib import closing
from typing import Any

import psycopg2
import pytest
import redis
import sqlalchemy as sa
from sqlalchemy import text

from models.ledger.tables import batches
from models.reports.diagnosis import Diagnosis
from models.settings import load
from producer.embedded import directories, processes
from tests import variants
from tests.acceptance.conftest import Ended, Product, count
from tests.conftest import address
from tests.wait import until
from worker import batch


@pytest.fixture
def opened(product: Product) -> Product:
    """A run that was opened, and that no worker has seen."""
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, 60)
    product.environment["MIGRATION_BATCH_SIZE"] = "20"
    assert product.run("enqueue-all", "--json").status == 0
    return product


def examined(product: Product, **environment: str) -> dict[str, Any]:
    """What the doctor says, where it could look."""
    ended = product.run("doctor", "--json", **environment)
    assert ended.status == 0, ended.err
    assert ended.json.keys() == {*Diagnosis().model_dump(), "database"}
    for finding in ended.json["findings"]:
        assert finding["kind"] in ended.err
    return ended.json


def kinds(found: dict[str, Any]) -> list[str]:
    return [finding["kind"] for finding in found["findings"]]


def said(found: dict[str, Any], kind: str) -> str:
    """The one finding of a kind, its hint included."""
    (finding,) = (finding for finding in found["findings"] if finding["kind"] == kind)
    return f"{finding['message']}. {finding['hint']}"


def in_work(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What workers have claimed, in all stages."""
    return [work for stage in found["stages"] for work in stage["work"]]


def change(product: Product, statement: str) -> None:
    with product.engine.begin() as connection:
        connection.execute(text(statement))


def work_in_this_process(product: Product, run_id: str) -> None:
    """Do what is published, as a worker that dies before it can say so."""
    with product.engine.connect() as connection:
        waiting = connection.scalars(sa.select(batches.c.id).where(batches.c.state == "pending"))
        ids = list(waiting)
    for batch_id in ids:
        done = batch.run(product.engine, load(), run_id, batch_id, "test/1")
        assert done == {"outcome": "done"}


def work_until_users(product: Product) -> str:
    """Go on until the batches of users wait; returns the run's id."""
    while True:
        run_id = str(examined(product)["run_id"])
        if count(product, "SELECT count(*) FROM migration.batches WHERE stage = 'users'"):
            return run_id
        work_in_this_process(product, run_id)


def ends_well(product: Product) -> None:
    with product.worker():
        watched: Ended = product.run("status", "--watch", "--json")
    assert watched.status == 3, watched.err
    assert watched.json["differences"] == {}
    log = (product.folder / f"celery-{len(product.workers) - 1}.log").read_text()
    # The doctor had fixed it: the workers' own reconciler found nothing to publish.
    assert "published again" not in log


def test_without_a_worker_it_says_how_to_start_one(opened: Product) -> None:
    found = examined(opened)
    assert kinds(found) == ["no_worker"]
    assert "celery -A worker worker" in said(found, "no_worker")
    assert (found["state"], found["redis"], found["fixed"]) == ("running", "answers", [])
    waiting = sum(stage["waiting"] for stage in found["stages"])
    assert waiting == sum(queue["messages"] for queue in found["queues"].values()) > 0
    assert [chord["returned"] for chord in found["chords"]] == [0]


def test_a_paused_run_waits_for_resume(opened: Product) -> None:
    opened.run("pause", "--json")
    found = examined(opened)
    assert kinds(found) == ["paused"]
    assert "producer resume" in said(found, "paused")
    assert found["fixed"] == []


def test_lost_messages_are_published_again_once(opened: Product, redis_url: str) -> None:
    work_until_users(opened)
    with closing(redis.Redis.from_url(redis_url)) as client:
        lost = client.llen(f"{opened.prefix}migration.users")
        client.delete(f"{opened.prefix}migration.users")
        found = examined(opened)
        assert "published again" in said(found, "lost_messages")
        (fixed,) = found["fixed"]
        assert (fixed["kind"], len(fixed["batches"])) == ("published_again", lost)
        assert kinds(examined(opened)) == ["no_worker"]
        assert client.llen(f"{opened.prefix}migration.users") == lost
    ends_well(opened)


def test_a_lease_that_ran_out_is_reopened_and_its_worker_named(opened: Product) -> None:
    work_until_users(opened)
    lapsed = (
        "UPDATE migration.batches SET state = 'running', attempt = 1, worker = 'elsewhere/123',"
        " lease_until = clock_timestamp() - interval '40 seconds'"
        " WHERE id = (SELECT min(id) FROM migration.batches WHERE stage = 'users')"
    )
    began = time.monotonic()
    change(opened, lapsed)
    found = examined(opened)
    oldest = 41 + time.monotonic() - began
    message = said(found, "lease_expired")
    (age,) = re.findall(r"expired (\d+) s ago", message)
    assert 40 <= int(age) <= oldest
    assert "elsewhere/123 is gone: reopened" in message
    (work,) = (work for stage in found["stages"] for work in stage["work"])
    assert (work["worker"], work["attempt"]) == ("elsewhere/123", 1)
    assert 40 <= -work["lease_seconds"] <= oldest
    assert found["fixed"] == [{"kind": "reopened", "batches": [work["batch_id"]], "stages": []}]
    ends_well(opened)


def test_a_lease_that_still_runs_is_left_to_its_worker(opened: Product) -> None:
    work_until_users(opened)
    change(
        opened,
        "UPDATE migration.batches SET state = 'running', attempt = 1, worker = 'elsewhere/123',"
        " lease_until = clock_timestamp() + interval '1 hour' WHERE stage = 'users'",
    )
    found = examined(opened)
    assert set(kinds(found)) == {"silent_worker"}
    assert found["fixed"] == []
    assert count(opened, "SELECT count(*) FROM migration.batches WHERE state = 'running'") > 1


@pytest.mark.long
def test_a_stage_that_nobody_closed_gives_way_to_the_next(opened: Product) -> None:
    run_id = work_until_users(opened)
    work_in_this_process(opened, run_id)
    found = examined(opened)
    assert "the stage users" in said(found, "not_opened")
    assert "opened" in [fixed["kind"] for fixed in found["fixed"]]
    assert kinds(examined(opened)) == ["no_worker"]
    ends_well(opened)


@pytest.mark.long
def test_batches_that_were_never_published_are(opened: Product, redis_url: str) -> None:
    work_until_users(opened)
    change(opened, "UPDATE migration.batches SET published_at = NULL WHERE stage = 'users'")
    with closing(redis.Redis.from_url(redis_url)) as client:
        client.delete(f"{opened.prefix}migration.users")
    found = examined(opened)
    assert [fixed["kind"] for fixed in found["fixed"]] == ["published"]
    assert "unpublished" in kinds(found)
    ends_well(opened)


def test_settings_of_another_run_fix_nothing(opened: Product, redis_url: str) -> None:
    change(opened, "CREATE TABLE others (LIKE users INCLUDING ALL)")
    with closing(redis.Redis.from_url(redis_url)) as client:
        client.delete(f"{opened.prefix}migration.control")
    found = examined(opened, MIGRATION_USERS_TABLE="others")
    assert "others" in said(found, "not_fixed")
    assert found["fixed"] == []


def test_a_queue_that_nobody_serves_is_named(opened: Product) -> None:
    looks: list[dict[str, Any]] = []

    def answers() -> bool:
        looks.append(examined(opened))
        return "no_worker" not in kinds(looks[-1])

    with opened.worker("--queues", "migration.users,migration.projects"):
        # A worker that is slow to answer is none: what counts is the look at which it did.
        until(answers)
    found = looks[-1]
    assert kinds(found) == ["unserved_queue"]
    assert "migration.control" in said(found, "unserved_queue")
    (worker,) = found["workers"]
    assert worker["queues"] == ["migration.projects", "migration.users"]
    assert len(worker["processes"]) == 3


def test_a_session_that_holds_a_lock_is_named_without_its_data(opened: Product) -> None:
    waits = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        " AND application_name = 'migration' AND datname = current_database()"
    )
    looks: list[Ended] = []

    def blocked() -> bool:
        looks.append(opened.run("doctor", "--json"))
        return bool(looks[-1].json["blockers"] and in_work(looks[-1].json))

    with closing(
        psycopg2.connect(opened.environment["DATABASE_URL"], application_name="dashboard")
    ) as session:
        pid = session.info.backend_pid
        with session.cursor() as cursor:
            cursor.execute("UPDATE users SET full_name = 'a secret of the row'")
        with opened.worker():
            until(lambda: count(opened, waits))
            # Between two attempts at the lock nobody is blocked for a moment.
            until(blocked)
            session.rollback()
            assert opened.run("status", "--watch", "--json").status == 3
    ended = looks[-1]
    assert ended.status == 0, ended.err
    (blocker,) = ended.json["blockers"]
    assert (blocker["pid"], blocker["application"]) == (pid, "dashboard")
    assert (blocker["state"], blocker["command"]) == ("idle in transaction", "UPDATE")
    message = said(ended.json, "blocked")
    assert f"pg_terminate_backend({pid})" in message
    assert "batch" in message and "UPDATE" in message
    assert "secret" not in ended.out + ended.err
    assert all(entry["lease_seconds"] <= 20 for entry in in_work(ended.json))
    # The triggers are what waits first.
    assert set(ended.json["unacknowledged"]) == {"migration.capture"}


def test_without_redis_it_still_shows_the_ledger(
    opened: Product, own_redis: directories.Place
) -> None:
    processes.stop_servers(own_redis.tag, "valkey-server")
    found = examined(opened, REDIS_URL=address(own_redis))
    assert kinds(found) == ["redis_down"]
    assert "REDIS_URL" in said(found, "redis_down")
    assert (found["redis"], found["workers"], found["fixed"]) == ("down", [], [])
    assert sum(stage["waiting"] for stage in found["stages"]) > 0
    assert {queue["messages"] for queue in found["queues"].values()} == {None}


@pytest.mark.long
def test_a_redis_without_memory_is_named(opened: Product, own_redis: directories.Place) -> None:
    with closing(redis.Redis.from_url(address(own_redis))) as client:
        client.config_set("maxmemory", 1)
    found = examined(opened, REDIS_URL=address(own_redis))
    assert kinds(found) == ["redis_refuses_writes"]
    assert "maxmemory" in said(found, "redis_refuses_writes")
    assert found["redis"] == "refuses writes"


@pytest.mark.long
def test_a_failed_run_says_why_and_what_then(opened: Product) -> None:
    change(opened, "ALTER TABLE organizations ADD CHECK (name <> 'Default Organization')")
    with opened.worker():
        assert opened.run("status", "--watch", "--json").status == 1
    found = examined(opened)
    assert kinds(found) == ["failed"]
    message = said(found, "failed")
    assert "organization" in message and "producer retry --wait" in message
    (stage,) = found["stages"]
    assert (stage["name"], stage["failed"]) == ("organization", 1)


@pytest.mark.long
def test_a_finished_run_waits_for_nothing(opened: Product) -> None:
    with opened.worker():
        assert opened.run("status", "--watch", "--json").status == 3
    found = examined(opened)
    assert kinds(found) == ["completed_with_quarantine"]
    assert "waits for nothing" in said(found, "completed_with_quarantine")
    assert (found["stages"], found["fixed"]) == ([], [])


def test_without_a_run_the_shape_is_kept(product: Product) -> None:
    ended = product.run("doctor", "--json")
    assert (ended.status, ended.json["error"]["kind"]) == (2, "unknown_run")
    assert ended.json.keys() == {*Diagnosis().model_dump(), "database"}


def test_without_a_database_it_is_the_usual_error(product: Product) -> None:
    gone = product.environment["DATABASE_URL"].replace("/test_", "/no_")
    ended = product.run("doctor", "--json", DATABASE_URL=gone)
    assert (ended.status, ended.json["error"]["kind"]) == (1, "unreachable")
    assert ended.json.keys() == {*Diagnosis().model_dump(), "database"}
