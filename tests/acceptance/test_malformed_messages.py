"""Ten thousand messages that nobody should have sent: a line of the log at most, and no more."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from random import Random
from typing import Any

import psutil
import pytest
import redis
from sqlalchemy import text

from tests import forgeries, genuine, oracle, variants
from tests.acceptance.conftest import COMMAND_SECONDS, Product, batches
from tests.acceptance.test_main_job import NAMES, USERS, assert_right
from tests.wait import until

DURING, AFTERWARDS, HUGE = 5_000, 5_000, 5
# Kombu keeps a list for each of four priorities.
PRIORITIES = ("", "\x06\x163", "\x06\x166", "\x06\x169")


class Server:
    """The broker as somebody with a Redis client sees it."""

    def __init__(self, client: redis.Redis, product: Product) -> None:
        self.client, self.product = client, product

    def push(self, random: Random, messages: list[tuple[str, bytes]]) -> None:
        """Push at random onto either end of the queues' lists, of any priority."""
        prefix = self.product.prefix
        pipe = self.client.pipeline(transaction=False)
        for queue, item in messages:
            key = f"{prefix}{queue}{random.choice(PRIORITIES)}"
            (pipe.lpush if random.random() < 0.5 else pipe.rpush)(key, item)
        pipe.execute()

    def is_empty(self) -> bool:
        """Whether nothing waits and nothing is unacknowledged."""
        prefix = self.product.prefix
        keys = [prefix + name for name in genuine.QUEUES]
        lists = sum(self.client.llen(key + priority) for key in keys for priority in PRIORITIES)
        return not lists and not self.client.exists(f"{prefix}unacked", f"{prefix}unacked_index")


@pytest.fixture
def server(product: Product) -> Iterator[Server]:
    with closing(redis.Redis.from_url(product.environment["REDIS_URL"])) as client:
        yield Server(client, product)


def bad(random: Random, count: int) -> tuple[list[tuple[str, bytes]], Counter[str]]:
    """So many bad messages, and how often each field is refused ("": none is)."""
    made = list(forgeries.many(random, count))
    return [(queue, item) for queue, _, item in made], Counter(field for _, field, _ in made)


def harmless(random: Random, product: Product, run_id: str) -> list[tuple[str, bytes]]:
    """Messages of the right form that nobody sent, half of them as if of a chord.

    For every batch that there is, and some that there are not.
    """
    with product.engine.connect() as connection:
        ids = list(connection.scalars(text("SELECT id FROM migration.batches")))
    return [
        (
            queue := random.choice(genuine.QUEUES),
            json.dumps(
                genuine.real(random, queue, run_id, batch_id, in_chord=random.random() < 0.5)
            ).encode(),
        )
        for batch_id in [*ids, *(2**62 + number for number in range(50)), 2**63 - 1]
    ]


def everything(product: Product) -> dict[str, str]:
    """A hash of every table of the database, the ledger included."""
    with product.engine.connect() as connection:
        names = connection.scalars(
            text(
                "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables"
                " WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
            )
        ).all()
        return {
            name: connection.scalar(
                text(f"SELECT md5(string_agg(t::text, ',' ORDER BY t::text)) FROM {name} t")
            )
            for name in names
        }


def refused(log: str) -> list[dict[str, Any]]:
    """The gate's lines, parsed."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == "message refused"]


@pytest.mark.long
def test_ten_thousand_bad_messages_change_nothing(product: Product, server: Server) -> None:
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, USERS)
        before = oracle.snapshot(connection, NAMES)
    product.environment |= {"MIGRATION_BATCH_SIZE": "10", "MIGRATION_LOG_FORMAT": "json"}
    random = Random(20261122)
    huge = [(queue, forgeries.huge(random, queue)) for queue in random.sample(genuine.QUEUES, HUGE)]
    first, expected = bad(random, DURING - HUGE)
    second, more = bad(random, AFTERWARDS)
    waiting = product.start("enqueue-all", "--wait", "--json")
    with product.worker() as worker:
        log = product.folder / "celery-0.log"
        until(lambda: batches(product, "done") >= 5)
        children = psutil.Process(worker.pid).children()
        with product.engine.connect() as connection:
            run_id = connection.scalar(text("SELECT id FROM migration.runs"))
        server.push(random, [*first, *huge, *harmless(random, product, run_id)])
        # The flood came while there was work to do, or this test says less than it seems to.
        assert waiting.poll() is None
        out, err = waiting.communicate(timeout=COMMAND_SECONDS)
        assert waiting.returncode == 3, err
        until(server.is_empty)
        assert json.loads(out)["differences"] == {}
        assert_right(product, before)

        still = everything(product)
        server.push(random, [*second, *harmless(random, product, run_id)])
        until(server.is_empty)
        assert everything(product) == still

        assert worker.poll() is None
        assert psutil.Process(worker.pid).children() == children
        with product.celery("inspect", "ping") as ping:
            assert ping.wait(timeout=COMMAND_SECONDS) == 0
    written = log.read_text()
    lines = refused(written)
    bad_fields = expected + more + Counter(message=HUGE)
    assert bad_fields.pop("") > 1_000
    assert Counter(line["field"] for line in lines) == bad_fields
    assert all(line["level"] == "warning" and line["reason"] for line in lines)
    assert forgeries.PERSONAL not in written
    for word in ("Traceback", "CRITICAL", "ERROR", "level='error'", "Connection to broker lost"):
        assert word not in written
