"""`producer metrics` as Prometheus meets it, over a run and over restarts."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager

import httpx
import pytest
import redis

from producer.demo import sample
from tests.acceptance.conftest import Product
from tests.integration.test_probing import closed_port
from tests.wait import until


@contextmanager
def exporting(product: Product) -> Iterator[str]:
    """The address of a `producer metrics`, which must end well when it is told to."""
    port = closed_port()
    process = product.start("metrics", f"--port={port}")
    address = f"http://127.0.0.1:{port}/metrics"
    try:
        until(lambda: answers(address))
        yield address
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.communicate()


def answers(address: str) -> bool:
    try:
        return httpx.get(address).status_code == 200
    except httpx.TransportError:
        return False


def figures(address: str) -> dict[str, str]:
    """Each line of the answer, without the two that say how long ago something was."""
    lines = httpx.get(address).text.splitlines()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    passing = ("migration_last_batch_age", "migration_rows_per_second")
    return {name: value for name, _, value in pairs if not name.startswith(passing)}


@pytest.mark.long
def test_a_restart_of_everything_and_a_flush_of_redis_change_no_figure(product: Product) -> None:
    with product.engine.begin() as connection:
        sample.load(connection, 300)
    with exporting(product) as address:
        assert figures(address) == {"migration_ledger_up": "1.0"}
        with product.worker():
            ended = product.run("enqueue-all", "--wait", "--json")
        assert ended.status == 3
        before = figures(address)
    run_id = ended.json["run_id"]
    state = f'migration_run_info{{run="{run_id}",state="completed_with_quarantine"}}'
    migrated = 'migration_legacy_rows{entity="users",state="migrated"}'
    assert before[state] == "1.0"
    assert float(before[migrated]) == ended.json["users"]["migrated"] > 0
    with closing(redis.Redis.from_url(product.environment["REDIS_URL"])) as client:
        client.flushdb()
    with exporting(product) as address:
        assert figures(address) == before


def test_a_port_that_is_taken_is_said(product: Product) -> None:
    with exporting(product) as address:
        port = httpx.URL(address).port
        second = product.run("metrics", f"--port={port}", "--json")
    assert second.status == 2
    assert second.json["error"]["kind"] == "misconfigured"
    assert str(port) in second.json["error"]["message"]
