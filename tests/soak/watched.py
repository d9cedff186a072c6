"""What it costs to be watched: the same school alone, and under eyes that never leave it."""

from __future__ import annotations

import os
import pty
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import httpx

from tests.soak.site import Site, finish, load, rows, workers

PAIRS, PAGE_SECONDS, SCRAPE_SECONDS = 5, 2.0, 5.0
PASSWORD = "correct horse"
_MAIN = "import sys, producer.cli as m; sys.argv[0] = 'producer'; m.main()"
PRODUCER = (sys.executable, "-c", _MAIN)


def run(site: Site, users: int) -> dict[str, Any]:
    """Pairs of runs; `cost` is the share of throughput that the watched one of a pair lacks."""
    legacy = site.fresh("legacy")
    load(legacy, users)
    legacy.dispose()
    pairs = []
    for number in range(PAIRS):
        # Neither is always the first.
        order = (False, True) if number % 2 else (True, False)
        took = {is_watched: _once(site, is_watched) for is_watched in order}
        pairs.append({"alone": took[False], "watched": took[True]})
    costs = [1 - pair["alone"]["seconds"] / pair["watched"]["seconds"] for pair in pairs]
    return {
        "users": users,
        "cost": round(statistics.median(costs), 4),
        "costs": [round(cost, 4) for cost in costs],
        "pairs": pairs,
    }


def _once(site: Site, is_watched: bool) -> dict[str, Any]:
    """One run; everybody who watches is there before the workers are."""
    engine = site.fresh("watched", template="legacy")
    finish(site.producer("enqueue-all", "--json"))
    looks: list[float] = []
    with _eyes(site, looks) if is_watched else nullcontext(), workers(site, 2):
        while rows(engine, "SELECT state FROM migration.runs")[0].state in ("preparing", "running"):
            time.sleep(0.5)
    found = rows(
        engine,
        "SELECT r.state, extract(epoch FROM r.finished_at - (SELECT min(b.started_at)"
        " FROM migration.batches b))::float AS seconds FROM migration.runs r",
    )[0]
    engine.dispose()
    return {
        "seconds": round(found.seconds, 2),
        "state": found.state,
        "looks": len(looks),
        "longest_look_ms": round(1000 * max(looks, default=0.0)),
    }


@contextmanager
def _eyes(site: Site, looks: list[float]) -> Iterator[None]:
    """`status --watch` at a terminal, an open page of the console, the metrics, and Flower.

    Returns when all of them have seen the run.
    """
    over, seen = threading.Event(), [threading.Event() for _ in range(4)]
    master, terminal = pty.openpty()
    ports = [str(_free_port()), str(_free_port())]
    flower = [sys.executable, "-m", "celery", "-A", "worker", "flower", f"--port={ports[1]}"]
    processes = [
        _start(site, *PRODUCER, "status", "--watch", stderr=terminal),
        _start(site, *PRODUCER, "serve", "--port", "0", stderr=subprocess.PIPE),
        _start(site, *PRODUCER, "metrics", "--port", ports[0], stderr=subprocess.DEVNULL),
        _start(site, *flower, stderr=subprocess.DEVNULL),
    ]
    jobs: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
        (_drain, (master, seen[0])),
        (_follow, (processes[1], over, seen[1], looks)),
        (_scrape, (f"http://127.0.0.1:{ports[0]}/metrics", over, seen[2])),
        (_scrape, (f"http://127.0.0.1:{ports[1]}/workers", over, seen[3])),
    ]
    threads = [threading.Thread(target=job, args=args, daemon=True) for job, args in jobs]
    for thread in threads:
        thread.start()
    try:
        for event in seen:
            assert event.wait(60), "somebody who was to watch never saw the run"
        yield
    finally:
        over.set()
        for process in processes:
            process.kill()
            process.wait()
        os.close(terminal)
        for thread in threads:
            thread.join(timeout=10)


def _start(site: Site, *command: str, stderr: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        env=site.environment | {"MIGRATION_CONSOLE_PASSWORD": PASSWORD, "TERM": "xterm"},
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, text=True,
    )  # fmt: skip


def _drain(master: int, seen: threading.Event) -> None:
    """Be the terminal; there is a picture on it as soon as the last stage's name came."""
    with suppress(OSError):
        while text := os.read(master, 65536):
            if b"finish" in text:
                seen.set()


def _follow(
    server: subprocess.Popen[str], over: threading.Event, seen: threading.Event, looks: list[float]
) -> None:
    """What the script of the open page does, at its own pace."""
    assert server.stderr is not None
    address = None
    while not address and (line := server.stderr.readline()):
        address = re.search(r"http://\S+", line)
    assert address
    with httpx.Client(base_url=address[0], follow_redirects=True) as client:
        token = re.search(r'name="csrf_token" value="([^"]*)"', client.get("/login").text)
        assert token
        client.post("/login", data={"name": "x", "password": PASSWORD, "csrf_token": token[1]})
        run = re.search(r'href="(/runs/[^"]*)"', client.get("/").text)
        assert run
        while not over.wait(PAGE_SECONDS if seen.is_set() else 0):
            started = time.monotonic()
            client.get(run[1]).raise_for_status()
            looks.append(time.monotonic() - started)
            seen.set()


def _scrape(address: str, over: threading.Event, seen: threading.Event) -> None:
    """What Prometheus does, and an open page of Flower."""
    while not over.wait(SCRAPE_SECONDS if seen.is_set() else 0.2):
        with suppress(httpx.ConnectError):
            httpx.get(address, timeout=10).raise_for_status()
            seen.set()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
