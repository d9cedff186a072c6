"""Faults of the product's own processes: killed, frozen, cut off in the middle, out of time.

A play starts what it needs on a site, does harm, and returns when the harm was over; None where
it lasts as long as the run.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress

import psutil
from sqlalchemy import text

from producer.embedded.processes import is_gone
from tests.faults import clocks
from tests.faults.site import Site, Worker
from tests.faults.world import USERS, NotInjected

Play = Callable[[Site], float | None]
# A run of the site has this many moments at least: batches, and windows that a chord closes.
# Neither shares a factor with the 11 of `moment`, so that 20 repetitions meet 20 batches.
BATCHES, WINDOWS = 54, 10
# One batch of the organization and three of the triggers come first, then pages of users.
BEFORE_USERS, PAGES = 4, 4
SCALINGS = 10
# What `producer enqueue-all` sends to an empty database, at least.
STATEMENTS = 400
# So that there is a run left to scale.
SLOWED_DOWN = (
    "CREATE FUNCTION take_time() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN PERFORM pg_sleep(0.1); RETURN NEW; END $$",
    "CREATE TRIGGER take_time BEFORE UPDATE ON migration.batches FOR EACH ROW"
    " WHEN (NEW.state = 'done') EXECUTE FUNCTION take_time()",
)


def moment(site: Site, moments: int = BATCHES) -> int:
    """Another moment of the run each repetition, spread over all of it."""
    return site.repetition * 11 % moments


def nothing(site: Site) -> None:
    """An undisturbed run."""
    site.work()
    site.enqueue()


def killed(point: str, whom: str, moments: int = BATCHES) -> Play:
    """SIGKILL at a point of the worker's code, at another batch or window each repetition."""

    def play(site: Site) -> float:
        site.work(**site.arm(point, whom, skip=moment(site, moments)))
        site.enqueue()
        return site.struck()

    return play


def killed_with_canary(site: Site) -> float:
    """SIGKILL to a child in a canary of half of the users, or in the full run after it."""
    site.runs = 2
    site.work(**site.arm("before-commit", "child", skip=moment(site)))
    site.enqueue("--percent", "50")
    site.until(site.is_over, "the end of the canary")
    site.enqueue()
    return site.struck()


def poisonous(site: Site) -> float:
    """One batch takes three workers with it, one after the other; its leases are set back."""
    skip = BEFORE_USERS + site.repetition % PAGES
    site.work(**site.arm("after-claim", "child", skip=skip, times=3, same_batch=True))
    site.enqueue()
    for death in range(3):
        site.struck(death + 1)
        site.until(lambda: _expire_the_dead(site), "the end of the child")
    return site.struck(3)


def comes_back_late(site: Site) -> float:
    """The whole worker is killed after COMMIT; its message returns as an hour would return it."""
    site.work(**site.arm("after-commit", "worker", skip=moment(site)))
    site.workers[0].is_wanted = False
    site.enqueue()
    struck = site.struck()
    index = f"{site.prefix}unacked_index"
    for tag in site.redis.zrange(index, 0, -1):
        site.redis.zadd(index, {tag: struck - 7200}, xx=True)
    site.workers[0].is_wanted = True
    site.must("the message was consumed again", lambda: not site.redis.zcard(index))
    return struck


def frozen(point: str) -> Play:
    """A child is stopped, loses its lease, somebody else does the batch, and it is continued."""

    def play(site: Site) -> float:
        site.work(**site.arm(point, "freeze", skip=moment(site)))
        site.enqueue()
        struck = site.struck()
        child = next(h["pid"] for h in site.happened() if "pid" in h)
        batch = site.scalar(
            "UPDATE migration.batches SET lease_until = clock_timestamp() - interval '1 second'"
            " WHERE state = 'running' AND worker LIKE :child RETURNING id",
            child=f"%/{child}",
        )
        done = "SELECT state = 'done' FROM migration.batches WHERE id = :id"
        try:
            site.until(lambda: site.scalar(done, id=batch), "another worker's commit")
        finally:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGCONT)
        site.until(lambda: _outcome(site), "the late worker's answer")
        site.must(
            "the late commit was refused",
            lambda: "done" not in (_outcome(site) or {"outcome": "done"}).values(),
        )
        return struck

    return play


def _outcome(site: Site) -> dict[str, str] | None:
    return next((h["outcome"] for h in site.happened() if "outcome" in h), None)


def producer_killed(site: Site) -> float:
    """SIGKILL in `producer enqueue-all`, its batches in the ledger; nobody runs it again."""
    site.work()
    site.enqueue(**site.arm("before-window", "worker"))
    return site.struck()


def producer_killed_publishing(site: Site) -> float:
    """The same with some messages of a window of eight out: the first window that has so many."""
    site.environment["MIGRATION_BATCH_SIZE"] = str(USERS // 8)
    site.work(**site.arm("after-commit", "worker", skip=BEFORE_USERS - 1))
    site.workers[0].is_wanted = False
    site.enqueue()
    site.struck()
    site.enqueue(**site.arm("before-message", "worker", skip=1 + site.repetition % 7))
    struck = site.struck(2)
    site.workers[0].is_wanted = True
    return struck


def producer_killed_early(site: Site) -> float:
    """SIGKILL at one of the first statements of `producer enqueue-all`, which is run again."""
    site.work()
    site.enqueue(**site.arm("after-sql", "worker", skip=site.repetition * 37 % STATEMENTS))
    struck = site.struck()
    site.enqueue()
    return struck


def two_producers(site: Site) -> float:
    """Two `producer enqueue-all` at the same moment."""
    site.work()
    site.enqueue(wait=False)
    site.enqueue()
    reports = site.folder / "producer.log"
    site.must("both reported a run", lambda: reports.read_text().count('"run_id"') == 2)
    return time.time()


def clock_jumps(site: Site) -> float:
    """A worker's clocks go an hour forward, or back in every other repetition."""
    file = site.folder / "clock"
    clocks.make(file)
    tickets = site.arm("after-claim", skip=moment(site))
    site.work(FAULT_CLOCK=str(file), **tickets)
    site.work(**tickets)
    site.enqueue()
    struck = site.struck()
    clocks.jump(file, 3600.0 if site.repetition % 2 else -3600.0)
    return struck


def scaled(site: Site) -> float:
    """4 workers, 1, 4, 1, …: ended by SIGTERM and SIGKILL in turn, started again."""
    site.environment["MIGRATION_BATCH_SIZE"] = "2"
    site.enqueue()
    site.change(*SLOWED_DOWN)
    site.work(4)
    draw = random.Random(site.repetition)
    for turn in range(2 if site.is_short else SCALINGS):
        _progress(site, 5)
        chosen, is_kill = draw.sample(site.workers, 3), bool(turn % 2)
        for worker in chosen:
            worker.is_wanted = False
            worker.signal(signal.SIGKILL if is_kill else signal.SIGTERM, group=is_kill)
        site.until(lambda: sum(map(Worker.is_alive, site.workers)) == 1, "the end of three workers")
        _expire_the_dead(site)
        _progress(site, 5)
        for worker in chosen:
            worker.is_wanted = True
    return time.time()


def _progress(site: Site, batches: int) -> None:
    """Wait until so many more batches are done."""
    query = "SELECT count(*) FROM migration.batches WHERE state = 'done'"
    so_far = int(site.scalar(query))
    site.until(lambda: site.scalar(query) >= so_far + batches or site.is_over(), "progress")
    if site.is_over():
        raise NotInjected("the run was over before the last scaling")


def _expire_the_dead(site: Site) -> int:
    """Set the leases of processes that are gone back; returns how many."""
    with site.engine.begin() as connection:
        running = connection.execute(
            text("SELECT id, worker FROM migration.batches WHERE state = 'running'")
        )
        dead = [row.id for row in running if _is_gone(int(row.worker.split("/")[-1]))]
        return connection.execute(
            text("UPDATE migration.batches SET lease_until = started_at WHERE id = ANY (:dead)"),
            {"dead": dead},
        ).rowcount


def _is_gone(pid: int) -> bool:
    try:
        return is_gone(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return True
