"""Flower in a real browser during a run: names, arguments, results, queues that say something."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from producer.broker.namespace import NO_LEDGER
from producer.demo import sample
from tests.acceptance.conftest import Product, count
from tests.acceptance.test_flower import flower
from tests.integration.test_probing import closed_port
from tests.system import packages
from tests.system.browsing import Browser, open_browser
from tests.wait import until

# The rows of whatever table is there, once Flower has filled it in.
ROWS = "return [...document.querySelectorAll('table tbody tr')].map(row => row.innerText)"


def table(browser: Browser, address: str, word: str) -> list[str]:
    """The rows of a page's table that hold a word, once there is one; the page is loaded anew."""
    found: list[str] = []

    def filled() -> bool:
        rows = browser.driver.execute_script(ROWS)
        found[:] = [row for row in rows if word in row]
        return bool(found)

    def loaded() -> bool:
        browser.driver.get(address)
        with suppress(AssertionError):
            until(filled, seconds=5)
        return bool(found)

    until(loaded)
    return found


def listens(redis_url: str) -> bool:
    """Whether Flower hears what workers of the ledger say, and not of no ledger, as at first."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        channels = client.pubsub_channels("*celeryev*")
    return any(not channel.startswith(NO_LEDGER) for channel in channels)


def waiting(browser: Browser, broker: str, queue: str) -> str:
    """How many messages wait in a queue, as Flower's page of the broker says."""
    (row,) = table(browser, broker, queue)
    return row.split()[1]


@pytest.fixture
def tcp_redis(tmp_path: Path) -> Iterator[str]:
    """The address of a Redis at a port: through a socket, Flower sees the database 0 only."""
    port = closed_port()
    server = packages.command("redis-server")
    with (tmp_path / "redis.log").open("wb") as log:
        process = subprocess.Popen(
            [*server, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait()


@pytest.mark.timeout(420)
def test_flower_shows_what_waits_what_was_done_by_whom_and_what_came_of_it(
    product: Product, tcp_redis: str, tmp_path: Path
) -> None:
    with product.engine.begin() as connection:
        sample.load(connection, 1_000)
    product.environment |= {"MIGRATION_BATCH_SIZE": "50", "REDIS_URL": tcp_redis}
    with flower(product) as (client, _), open_browser(tmp_path / "browser") as browser:
        broker, tasks = f"{client.base_url}/broker", f"{client.base_url}/tasks"
        run_id = product.run("enqueue-all", "--json").json["run_id"]
        # Nobody works yet: the first batch waits, which a Flower that was there before the ledger
        # shows once it has looked for one again.
        until(lambda: waiting(browser, broker, "migration.control") == "1")
        until(lambda: listens(tcp_redis))
        assert len(table(browser, broker, "migration.")) == 5
        with product.worker("--hostname=one@here"):
            over = "SELECT count(*) FROM migration.runs WHERE state LIKE 'completed%'"
            until(lambda: count(product, over), seconds=300)
            assert table(browser, f"{client.base_url}/workers", "one@here")
            (first,) = table(browser, f"{tasks}?name=migration.organization", "migration.")
            assert run_id in first and "one@here" in first
            assert "SUCCESS" in first and "{'outcome': 'done'}" in first
            # One name a step; what it was about stands in the arguments.
            for name in ("users", "projects", "switch", "verify", "reconcile", "advance"):
                rows = table(browser, f"{tasks}?name=migration.{name}", f"migration.{name}")
                assert all(run_id in row for row in rows), name
            assert waiting(browser, broker, "migration.control") == "0"
    # A Flower that is started anew knows nothing of it, and the ledger all.
    with flower(product) as (fresh, _):
        assert fresh.get("/tasks/datatable?draw=1&start=0&length=10").text.count(run_id) == 0
    assert product.run("status", "--json").json["users"]["total"] == 1_000
