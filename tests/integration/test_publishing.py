"""A window goes out in a few flushes, as a chord that Celery's own workers understand."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from contextlib import closing

import redis

from producer.broker.namespace import NO_LEDGER
from producer.embedded import directories
from tests.conftest import address
from worker.message_filter import admit

MESSAGES = 1_200
_PUBLISH = f"""
from producer.broker.messages import Message
from producer.broker.queue import publish_window
run = "20260101-000000-abcd"
publish_window([Message(run, n, "users", "users") for n in range(1, {MESSAGES + 1})])
"""


def test_a_window_is_one_chord_in_few_round_trips(
    own_redis: directories.Place, run_alone: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    # What the server reads is counted: nobody else may talk to it.
    with closing(redis.Redis.from_url(address(own_redis))) as client:
        before = client.info("stats")["total_reads_processed"]
        ended = run_alone(_PUBLISH, REDIS_URL=address(own_redis))
        assert ended.returncode == 0, ended.stderr
        # A flush is larger than one read of the server; a message each would be one read and more.
        assert client.info("stats")["total_reads_processed"] - before < MESSAGES / 4
        items = client.lrange(f"{NO_LEDGER}migration.users", 0, -1)
        assert len(items) == MESSAGES
        headers = [json.loads(item)["headers"] for item in items]
        assert len({header["id"] for header in headers}) == MESSAGES
        assert {header["group_index"] for header in headers} == set(range(MESSAGES))
        (group,) = {header["group"] for header in headers}
        size = next(key for key in client.scan_iter("*.s") if group.encode() in key)
        assert int(client.get(size)) == MESSAGES
        # A worker's gate lets each of them in.
        assert all(json.loads(admit("migration.users", item)) for item in items)


_LOSE = """
import kombu.exceptions, redis
from redis.client import Pipeline
from producer.broker.messages import Message
from producer.broker.queue import publish_again, publish_window

def lose(*_, **__):
    raise redis.ConnectionError("cut off")

publish_again([Message("20260101-000000-abcd", 1, "users", "users")])
Pipeline.execute = lose
for publish in (publish_again, publish_window):
    try:
        publish([Message("20260101-000000-abcd", n, "users", "users") for n in range(1, 4)])
    except (kombu.exceptions.OperationalError, redis.RedisError):
        continue
    raise SystemExit(f"{publish.__name__} did not say that the connection is gone")
"""


def test_a_flush_that_fails_is_an_error_of_the_connection(
    run_alone: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    ended = run_alone(_LOSE)
    assert ended.returncode == 0, ended.stderr
