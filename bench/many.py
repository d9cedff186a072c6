"""`python -m bench.many`: up to 200 workers on one ledger, with batches that write nothing.

`bench.nothing` has the workers. The CPU of PostgreSQL for a batch, and what its sessions wait for,
tell what limits it also on a machine that is busy otherwise.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from statistics import median
from typing import Any

import click
import psutil
import redis
from sqlalchemy import text

from bench.nothing import OVER, publish, work
from producer.embedded import directories
from tests.soak.site import Site, open_site, rows

WORKERS, AWAY_MS = (1, 8, 32, 64, 128, 200), (0.0, 5.0)
PROCESSES, ROWS, SECONDS, WARM_BATCHES = 4, 200_000, 10.0, 300
_WAITS = text(
    "SELECT coalesce(wait_event_type || ' ' || wait_event, 'CPU') FROM pg_stat_activity"
    " WHERE application_name = 'migration' AND state = 'active' AND pid <> pg_backend_pid()"
)


def measure(site: Site, engine: Any, workers: int, away: float) -> dict[str, Any]:
    """Let so many workers do batches of one open run for some seconds."""
    from models.settings import load
    from producer.reports import status
    from producer.runs import advance

    client = redis.Redis.from_url(site.servers.redis_url)
    client.flushall()
    run_id, _ = advance.open_run(engine, load())
    advance.publish_window = partial(publish, client)
    advance.advance(engine, load(), run_id)
    context = multiprocessing.get_context("fork")
    results, shares = context.Queue(), [workers // PROCESSES] * PROCESSES
    shares = shares if workers >= PROCESSES else [workers]
    address = (site.address(site.name), site.servers.redis_url, run_id)
    engine.dispose()
    running = [
        context.Process(target=work, args=(*address, share, away, results)) for share in shares
    ]
    for process in running:
        process.start()
    done = "SELECT count(*) FROM migration.batches WHERE state = 'done'"
    # Windows grow, and processes load: neither counts.
    while rows(engine, done)[0][0] < WARM_BATCHES:
        time.sleep(0.1)
    waits: Counter[str] = Counter()
    used = _cpu(site)
    began, before, looks = time.monotonic(), rows(engine, done)[0][0], 0
    asked: list[float] = []
    while time.monotonic() - began < SECONDS:
        with engine.connect() as connection:
            waits.update(connection.scalars(_WAITS))
        looks += 1
        if looks % 20 == 0:
            at = time.monotonic()
            status.read(engine, run_id)
            asked.append(1000 * (time.monotonic() - at))
        time.sleep(0.05)
    seconds, after = time.monotonic() - began, rows(engine, done)[0][0]
    used = _cpu(site) - used
    client.set(OVER, 1)
    times = [results.get() for _ in running]
    for process in running:
        process.join()
    merged = {name: [each for found in times for each in found[name]] for name in times[0]}
    return {
        "workers": workers,
        "away_ms": away,
        "batches_a_second": round((after - before) / seconds),
        **{f"{name}_ms": round(median(found), 1) for name, found in merged.items() if found},
        "status_ms": round(median(asked), 1),
        "postgres_ms_a_batch": round(1000 * used / max(1, after - before), 2),
        "active": round(sum(waits.values()) / looks, 1),
        "waits": {event: round(count / looks, 2) for event, count in waits.most_common(5)},
    }


def _cpu(site: Site) -> float:
    """Seconds of CPU that the server's processes have used; sessions stay during a measurement."""
    place = directories.find(site.home)
    assert place is not None
    pid = int((place.postgres / "data" / "postmaster.pid").read_text().split()[0])
    found = 0.0
    for process in psutil.Process(pid).children():
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            found += times.user + times.system
    return found


@click.command()
@click.option("--workers", type=int, multiple=True, default=WORKERS, show_default=True)
@click.option("--milliseconds", type=float, multiple=True, default=AWAY_MS, show_default=True)
def main(workers: tuple[int, ...], milliseconds: tuple[float, ...]) -> None:
    """Print a line of JSON for each number of workers and each distance."""
    os.environ["MIGRATION"] = "bench.nothing:MIGRATION"
    os.environ["MIGRATION_BATCH_SIZE"] = "1"
    from models.settings import load
    from producer.embedded import postgres
    from producer.schema import upgrade

    postgres.SETTINGS["max_connections"] = "500"
    with open_site() as site:
        admin = site.fresh("legacy")
        with admin.begin() as connection:
            connection.execute(text("CREATE TABLE things (id bigint PRIMARY KEY)"))
            connection.execute(
                text("INSERT INTO things SELECT generate_series(1, :rows)"), {"rows": ROWS}
            )
        admin.dispose()
        for away in milliseconds:
            for number in workers:
                engine = site.fresh("many", template="legacy")
                upgrade.upgrade(engine, load())
                click.echo(json.dumps(measure(site, engine, number, away)))
                engine.dispose()


if __name__ == "__main__":
    main()
