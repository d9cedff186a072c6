"""A migration that writes nothing, so that what is left of a batch is the protocol; its workers.

Each worker is a thread with an engine of its own, and runs the product's own code: it takes an id
from Redis, does the batch, and whoever does the last one of a window calls `advance`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import redis
import structlog

from models.engine.api import Context, Counts, Expect, Migration, Scope, Source, Step
from models.postgres import database as databases
from models.postgres import limited

IDS, LEFT, OVER = "bench.ids", "bench.left", "bench.over"


class Nothing(Step):
    """Each batch is claimed, counted and completed, and no row is read."""

    source = Source("thing")
    expects = (Expect("things", "SELECT s.id AS source_key, s.id FROM {things} s", key="id"),)
    irreversible = "It writes nothing."

    def apply(self, context: Context, scope: Scope) -> Counts:
        return {"things": {"total": 1, "quarantined": 0}}


MIGRATION = Migration("nothing", [Nothing()])


def delay(seconds: float) -> None:
    """Let each round trip of this process take so much longer."""

    def later(real: Callable[..., Any], of: Any, *arguments: Any) -> Any:
        connection = getattr(of, "connection", of)
        if real.__name__ == "execute" or connection.info.transaction_status:
            time.sleep(seconds)
        return real(of, *arguments)

    for kind, name in (
        (limited.Cursor, "execute"),
        (limited.Connection, "commit"),
        (limited.Connection, "rollback"),
    ):
        real = getattr(kind, name)
        setattr(kind, name, lambda *given, real=real: later(real, *given))


def work(url: str, redis_url: str, run_id: str, threads: int, away: float, results: Any) -> None:
    """A process with so many workers; puts the times of what they called, by name."""
    from models.settings import load
    from producer.runs import advance
    from worker import batch

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    if away:
        delay(away / 1000)
    times: dict[str, list[float]] = {"batch": [], "claim": [], "advance": []}
    client, settings = redis.Redis.from_url(redis_url), load()

    def timed(name: str, action: Callable[..., Any], *arguments: Any) -> Any:
        began = time.monotonic()
        try:
            return action(*arguments)
        finally:
            times[name].append(1000 * (time.monotonic() - began))

    batch.claims.claim = partial(timed, "claim", batch.claims.claim)
    advance.publish_window = partial(publish, client)

    def worker(number: int) -> None:
        engine = databases.create(url)
        while not client.exists(OVER):
            if (taken := client.blpop([IDS], timeout=1)) is None:
                continue
            window, batch_id = taken[1].decode().split()
            timed("batch", batch.run, engine, settings, run_id, int(batch_id), f"bench/{number}")
            if client.hincrby(LEFT, window, -1) == 0:
                timed("advance", advance.advance, engine, settings, run_id)
        engine.dispose()

    running = [threading.Thread(target=worker, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    results.put(times)


def publish(client: Any, window: list[Any]) -> None:
    if not window:
        return
    client.hset(LEFT, str(window[0].batch_id), len(window))
    client.rpush(IDS, *(f"{window[0].batch_id} {message.batch_id}" for message in window))
