"""A night of kills: a process every few seconds, every message twice, Redis flushed three times."""

from __future__ import annotations

import random
import time
from typing import Any

import psutil
import redis

from tests.soak.site import Site, finish, load, rows, verdict, workers

KILL_EVERY, FLUSHES = 5.0, 3
APP = "tests.soak.doubling"


def run(site: Site, users: int) -> dict[str, Any]:
    """Migrate `users` users under fire; what was done to the run, and what became of it."""
    engine = site.fresh("chaos")
    before = load(engine, users)
    dice = random.Random(1)
    client = redis.Redis.from_url(site.servers.redis_url)
    kills: list[dict[str, Any]] = []
    flushed: list[float] = []
    with workers(site, 2, APP) as running:
        producer = site.producer("enqueue-all", "--wait", "--json", module=APP)
        started = due = time.monotonic()

        def harm() -> None:
            nonlocal due
            _look(engine, kills)
            if time.monotonic() < due + KILL_EVERY:
                return
            due = time.monotonic()
            if len(flushed) < FLUSHES and due - started > 10 * (len(flushed) + 1):
                client.flushall()
                flushed.append(due - started)
            number = dice.randrange(len(running))
            victim = _victim(running[number], dice)
            if victim is None:
                return
            kills.append(_kill(engine, victim, is_main=victim.pid == running[number].pid))
            if not running[number].is_running():
                running[number] = site.worker(number, APP)

        report = finish(producer, harm)
    _look(engine, kills)
    batches = rows(
        engine,
        "SELECT count(*) FILTER (WHERE state IN ('pending', 'running')) AS open,"
        " coalesce(sum(greatest(attempt - 1, 0)), 0) AS again, sum(lapses) AS lapses,"
        " count(*) AS total FROM migration.batches",
    )[0]
    wrong = verdict(engine, before)
    engine.dispose()
    waits = [kill["waited"] for kill in kills if kill["batches"] and kill["waited"] is not None]
    return {
        "users": users,
        "exit_status": report["exit_status"],
        "seconds": round(report["wall"], 1),
        "kills": len(kills),
        "kills_of_a_whole_worker": sum(kill["is_main"] for kill in kills),
        "kills_amid_a_batch": sum(bool(kill["batches"]) for kill in kills),
        "redis_flushed_at": [round(at, 1) for at in flushed],
        "batches": batches.total,
        "batches_open": batches.open,
        "attempts_beyond_the_first": int(batches.again),
        "most_batches_lost_by_one_kill": max((len(kill["batches"]) for kill in kills), default=0),
        "longest_wait_after_a_kill": round(max(waits, default=0.0), 1),
        "wrong_rows": len(wrong),
        "first_wrong_rows": wrong[:5],
    }


def _victim(worker: psutil.Popen, dice: random.Random) -> psutil.Process | None:
    try:
        return dice.choice([psutil.Process(worker.pid), *worker.children()])
    except psutil.NoSuchProcess:
        return None


def _kill(engine: Any, victim: psutil.Process, *, is_main: bool) -> dict[str, Any]:
    victim.kill()
    psutil.wait_procs([victim], timeout=5)
    lost = rows(
        engine,
        "SELECT id, attempt FROM migration.batches WHERE state = 'running' AND worker LIKE :pid",
        pid=f"%/{victim.pid}",
    ) if rows(engine, "SELECT to_regclass('migration.batches')")[0][0] else []  # fmt: skip
    return {
        "at": time.monotonic(),
        "is_main": is_main,
        "batches": {row.id: row.attempt for row in lost},
        "waited": None,
    }


def _look(engine: Any, kills: list[dict[str, Any]]) -> None:
    """Note when the batches of each kill were claimed again, or replaced by smaller ones."""
    for kill in kills:
        if kill["waited"] is None and kill["batches"]:
            still = rows(
                engine,
                "SELECT id, attempt, state FROM migration.batches WHERE id = ANY(:ids)",
                ids=list(kill["batches"]),
            )
            lying = (row for row in still if row.state in ("running", "pending"))
            if not any(row.attempt == kill["batches"][row.id] for row in lying):
                kill["waited"] = time.monotonic() - kill["at"]
