"""Servers that are away for minutes: how much is logged meanwhile, and how the run ends."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from producer import embedded
from producer.embedded import directories
from tests.soak.site import Site, finish, load, rows, verdict, workers
from tests.wait import comes, until

WORKERS, PROCESSES = 8, 2
DATABASE_MINUTES, REDIS_MINUTES = 10, 3
_DONE = "SELECT count(*) FROM migration.batches WHERE state = 'done'"


def run(site: Site, users: int) -> dict[str, Any]:
    """One run of small batches, from which PostgreSQL goes away, and later Redis."""
    engine = site.fresh("away")
    before = load(engine, users)
    os.environ["MIGRATION_BATCH_SIZE"] = str(max(1, users // 200))
    place = directories.find(site.home)
    assert place is not None

    def done() -> int:
        with suppress(Exception):
            return int(rows(engine, _DONE)[0][0])
        return 0

    def outage(pid_file: Path, how: signal.Signals, minutes: int) -> dict[str, Any]:
        """Take a server away once another batch is done; what was logged in each minute."""
        was = done()
        until(lambda: done() > was + WORKERS, "no batch is done")
        counts, tracebacks = [len(_lines(site))], _tracebacks(site)
        os.kill(int(pid_file.read_text().split()[0]), how)
        for _ in range(minutes):
            comes(lambda: False, 60.0)
            counts.append(len(_lines(site)))
        embedded.start(site.home)
        started = time.monotonic()
        until(lambda: done() > 0, "the database does not answer")
        was = done()
        until(lambda: done() > was or producer.poll() is not None, "no batch is done again")
        return {
            "minutes": minutes,
            "lines_a_minute": [after - at for at, after in pairwise(counts)],
            "tracebacks": _tracebacks(site) - tracebacks,
            "seconds_to_next_batch": round(time.monotonic() - started, 1),
        }

    with workers(site, WORKERS, concurrency=PROCESSES):
        producer = site.producer("enqueue-all", "--wait", "--json")
        postmaster = place.postgres / "data" / "postmaster.pid"
        database = outage(postmaster, signal.SIGQUIT, DATABASE_MINUTES)
        redis = outage(place.redis / "pid", signal.SIGKILL, REDIS_MINUTES)
        ended = finish(producer)
    wrong = verdict(engine, before)
    engine.dispose()
    return {
        "users": users,
        "worker_processes": WORKERS * PROCESSES,
        "database": database,
        "redis": redis,
        "state": ended["state"],
        "wrong_rows": len(wrong),
        "first_wrong_rows": wrong[:5],
    }


def _lines(site: Site) -> list[str]:
    """All that the workers and the waiting command have logged."""
    found = []
    for file in sorted(site.home.glob("*.log")):
        found += file.read_text(errors="replace").splitlines()
    return found


def _tracebacks(site: Site) -> int:
    return sum(line.startswith("Traceback") for line in _lines(site))
