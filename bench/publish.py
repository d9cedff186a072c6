"""`python -m bench.publish`: the fan-out of one window, far larger than any, into an idle Redis."""

from __future__ import annotations

import json
import os
import time

import click
import psutil
import redis

from tests.soak.site import open_site


@click.command()
@click.option("--messages", type=click.IntRange(1), default=100_000, show_default=True)
def main(messages: int) -> None:
    """Publish so many messages as one chord; prints seconds, and megabytes of memory taken."""
    with open_site() as site:
        os.environ.update(site.environment)
        # Reads the servers' addresses from the environment, once.
        from producer.broker.messages import Message
        from producer.broker.queue import publish_window

        client = redis.Redis.from_url(site.servers.redis_url)
        publish_window([Message("warm", 1, "users", "users")])
        client.flushall()
        batches = [Message("bench", number, "users", "users") for number in range(messages)]
        process = psutil.Process()
        own, theirs = process.memory_info().rss, int(client.info("memory")["used_memory"])
        started = time.monotonic()
        publish_window(batches)
        found = {
            "messages": messages,
            "waiting": sum(int(client.llen(key)) for key in client.scan_iter("*migration.users")),
            "seconds": round(time.monotonic() - started, 2),
            "producer_mb": round((process.memory_info().rss - own) / 1e6, 1),
            "redis_mb": round((int(client.info("memory")["used_memory"]) - theirs) / 1e6, 1),
        }
    click.echo(json.dumps(found))


if __name__ == "__main__":
    main()
