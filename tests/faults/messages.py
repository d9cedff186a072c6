"""Faults on the way of the messages: lost, doubled, out of order, late; Redis gone or full."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time

import redis

from tests.faults.deaths import moment
from tests.faults.site import QUEUES, Site
from tests.faults.world import NotInjected

_SHUFFLE = """
local seed = tonumber(ARGV[1])
for _, key in ipairs(KEYS) do
  if redis.call('TYPE', key).ok == 'list' then
    local found = redis.call('LRANGE', key, 0, -1)
    for i = #found, 2, -1 do
      seed = (seed * 16807) % 2147483647
      local j = seed % i + 1
      found[i], found[j] = found[j], found[i]
    end
    redis.call('DEL', key)
    for _, message in ipairs(found) do redis.call('RPUSH', key, message) end
  end
end
"""


def twice(site: Site) -> None:
    """Every message is published twice."""
    site.work(FAULT_TWICE="1")
    site.enqueue(FAULT_TWICE="1")


def shuffled(site: Site) -> None:
    """The queues are shuffled many times a second, as long as the run lasts."""
    site.enqueue()
    draw = random.Random(site.repetition)

    def shuffle() -> bool:
        for name in site.redis.keys(QUEUES):
            site.redis.eval(_SHUFFLE, 1, name, draw.randrange(1, 2**31))
        return site.is_over()

    shuffle()
    site.work()
    site.until(shuffle, "the end of the run", 90)


def late(site: Site) -> float:
    """A message comes ten minutes after its batch was published, and done by another message."""
    at_a_batch(site)
    name, message = _take(site)
    site.change(
        "UPDATE migration.batches SET published_at = published_at - interval '10 minutes'"
        " WHERE state = 'pending'"
    )
    so_far = site.scalar("SELECT max(id) FROM migration.batches")
    goes_on = (
        "SELECT (SELECT min(state) FROM migration.runs) <> 'running' OR"
        " EXISTS (SELECT FROM migration.batches WHERE id > :so_far AND state = 'done')"
    )
    site.until(lambda: site.scalar(goes_on, so_far=so_far), "progress without the message")
    site.redis.rpush(name, message)
    return time.time()


def dropped(site: Site) -> float:
    """A message vanishes from its queue."""
    at_a_batch(site)
    _take(site)
    return time.time()


def _take(site: Site) -> tuple[str, str]:
    """The next message that comes by, and its queue."""
    names = ("users", "projects", "verify", "credits", "control")
    found = site.redis.brpop([f"{site.prefix}migration.{name}" for name in names], timeout=10)
    if not found:
        raise NotInjected("no message came by")
    return found[0], found[1]


def chord_keys_deleted(site: Site) -> float:
    """All that a chord knows is deleted while its tasks are under way."""
    at_a_batch(site)
    _delete(site, "*taskset-meta*")
    return time.time()


def results_expired(site: Site) -> None:
    """Whatever Celery keeps beside the queues expires at once, as long as the run lasts."""
    site.work()
    site.enqueue()

    def expire() -> bool:
        _delete(site, "*task*-meta*")
        return site.is_over()

    site.until(expire, "the end of the run", 120)


def _delete(site: Site, pattern: str) -> None:
    for name in site.redis.keys(f"{site.prefix}{pattern}"):
        site.redis.pexpire(name, 1)


def at_a_batch(site: Site) -> None:
    site.work(**site.arm("after-claim", skip=moment(site)))
    site.enqueue()
    site.struck()


def flushed(site: Site) -> float:
    """FLUSHALL."""
    at_a_batch(site)
    site.redis.flushall()
    return time.time()


def redis_killed(site: Site, *, keeps_data: bool = True) -> float:
    """Valkey is killed and started again."""
    at_a_batch(site)
    os.kill(site.lane.valkey(), signal.SIGKILL)
    if not keeps_data:
        shutil.rmtree(site.lane.place.redis / "appendonlydir")
    site.lane.start()
    return time.time()


def redis_killed_and_emptied(site: Site) -> float:
    """Valkey is killed and comes back with nothing."""
    return redis_killed(site, keeps_data=False)


def redis_frozen(site: Site) -> float:
    """Valkey answers nobody for 30 seconds: its process is stopped."""
    at_a_batch(site)
    valkey = site.lane.valkey()
    os.kill(valkey, signal.SIGSTOP)
    site.hold(3 if site.is_short else 30)
    os.kill(valkey, signal.SIGCONT)
    return time.time()


def redis_full(site: Site) -> float:
    """Valkey takes no write for 10 seconds, for want of memory."""
    at_a_batch(site)
    site.redis.config_set("maxmemory", "1")
    site.hold(2 if site.is_short else 10)
    try:
        site.redis.set("probe", "1")
    except redis.OutOfMemoryError:
        site.must("it was full", lambda: True)
    else:
        site.must("it was full", lambda: False)
    site.redis.config_set("maxmemory", "0")
    return time.time()
