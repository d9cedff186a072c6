"""Two environments on one Redis, and workers that see other tables, never touch each other's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from sqlalchemy import text

from producer import embedded
from tests import oracle, variants
from tests.acceptance.conftest import Product, count, make
from tests.acceptance.test_main_job import NAMES, USERS, assert_right
from tests.conftest import fresh_database
from tests.wait import until

REPUBLISHED = "SELECT sum(republished) FROM migration.batches"


@pytest.fixture
def pair(servers: embedded.Servers, product: Product) -> Iterator[tuple[Product, Product]]:
    """Two environments, each with a database of its own, on one Redis."""
    folder = product.folder / "other"
    folder.mkdir()
    with fresh_database(servers.database_url) as database:
        yield from ((product, other) for other in make(database, redis(product), folder))


@pytest.fixture
def without_ledger(servers: embedded.Servers, product: Product) -> Iterator[Product]:
    """A third environment, where nobody has made a ledger."""
    folder = product.folder / "empty"
    folder.mkdir()
    with fresh_database(servers.database_url) as database:
        yield from make(database, redis(product), folder)


def redis(product: Product) -> str:
    return product.environment["REDIS_URL"]


def fill(product: Product, users: int = USERS) -> oracle.Snapshot:
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, users)
        return oracle.snapshot(connection, NAMES)


def answers(product: Product) -> bool:
    with product.celery("inspect", "ping") as ping:
        return ping.wait(timeout=60) == 0


def workers_of(product: Product) -> set[str]:
    with product.engine.connect() as connection:
        query = "SELECT DISTINCT worker FROM migration.batches WHERE worker IS NOT NULL"
        return set(connection.scalars(text(query)))


def test_workers_of_two_environments_on_one_redis_do_their_own_batches_only(
    pair: tuple[Product, Product],
) -> None:
    before = [fill(product, 40) for product in pair]
    # Both are there before any ledger is, as in the documented order.
    with pair[0].worker("--concurrency=1"), pair[1].worker("--concurrency=1"):
        waiting = [product.start("enqueue-all", "--wait", "--json") for product in pair]
        ended = [process.communicate(timeout=300) for process in waiting]
    assert [process.returncode for process in waiting] == [3, 3], ended
    assert not workers_of(pair[0]) & workers_of(pair[1])
    for product, snapshot in zip(pair, before, strict=True):
        assert_right(product, snapshot)
        assert workers_of(product)
        assert count(product, REPUBLISHED) == 0


@pytest.mark.long
@pytest.mark.timeout(400)
def test_two_environments_on_one_redis_never_touch_each_others_batches(
    pair: tuple[Product, Product], without_ledger: Product
) -> None:
    before = [fill(product) for product in pair]
    for product in pair:
        product.environment["MIGRATION_BATCH_SIZE"] = "20"
    with ExitStack() as workers:
        # All of them are there before any ledger is, as in the documented order.
        for product in (*pair, without_ledger):
            workers.enter_context(product.worker())
        waiting = [product.start("enqueue-all", "--wait", "--json") for product in pair]
        ended = [process.communicate(timeout=300) for process in waiting]
        assert [process.returncode for process in waiting] == [3, 3], ended
        assert answers(without_ledger)
        found = pair[0].run("doctor", "--json")
        strangers = [f for f in found.json["findings"] if f["kind"] == "strangers"]
        assert len(strangers) == 1 and pair[1].prefix in strangers[0]["message"]
        for product, snapshot in zip(pair, before, strict=True):
            assert_right(product, snapshot)
            assert count(product, REPUBLISHED) == 0


@pytest.mark.long
def test_a_worker_follows_a_ledger_that_was_dropped_and_made_anew(product: Product) -> None:
    before = fill(product)
    with product.worker():
        assert product.run("schema", "upgrade", "--json").status == 0
        first = product.prefix
        until(lambda: answers(product))
        assert product.run("schema", "downgrade", "--yes", "--json").status == 0
        ended = product.run("enqueue-all", "--wait", "--json")
        assert (ended.status, ended.json["differences"]) == (3, {}), ended.err
        assert product.prefix != first
        assert_right(product, before)


@pytest.mark.long
def test_a_worker_with_another_search_path_does_not_touch_the_run(product: Product) -> None:
    before = fill(product)
    with product.engine.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA old")
        for table in ("users", "gpt_subscriptions", "projects"):
            connection.exec_driver_sql(
                f"CREATE TABLE old.{table} (LIKE {table} INCLUDING ALL);"
                f" INSERT INTO old.{table} SELECT * FROM {table}"
            )
    product.environment["MIGRATION_BATCH_SIZE"] = "20"
    astray = f"{product.environment['DATABASE_URL']}&options=-csearch_path%3Dold,public"
    with product.worker(DATABASE_URL=astray), ExitStack() as stack:
        waiting = stack.enter_context(product.start("enqueue-all", "--wait", "--json"))
        stack.callback(waiting.kill)
        until(lambda: count(product, "SELECT count(*) FROM migration.runs"))
        log = product.folder / "celery-0.log"
        until(lambda: "takes no messages" in log.read_text() and "other tables" in log.read_text())

        def is_found() -> bool:
            found = json.loads(product.run("doctor", "--json").out)
            return "other_tables" in [finding["kind"] for finding in found["findings"]]

        until(is_found)
        with product.worker():
            out, err = waiting.communicate(timeout=150)
    assert (waiting.returncode, json.loads(out)["differences"]) == (3, {}), err
    assert_right(product, before)
    with product.engine.connect() as connection:
        assert connection.scalar(text("SELECT to_regclass('old.ai_suites')")) is None
