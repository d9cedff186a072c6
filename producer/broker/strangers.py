"""Who else uses this Redis: prefixes of other ledgers with messages or workers of theirs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import redis

from producer.broker import namespace

# A look, not an inventory: so many keys at most, of a Redis that may hold millions of others.
KEYS_A_SCAN, SCANS = 2_000, 25
_WORKERS = "_kombu.binding.celery.pidbox"
_QUEUE = "migration."


@dataclass
class Stranger:
    """What lies under one prefix: messages that wait, and workers by their names."""

    prefix: str
    messages: int = 0
    workers: list[str] = field(default_factory=list)


def look(client: redis.Redis) -> list[Stranger]:
    """Those that are there besides this process's own; none where the user may not look."""
    found: dict[str, Stranger] = {}
    try:
        for key in _keys(client):
            root, ledger, name = [*key.split(":", 2), "", ""][:3]
            prefix = f"{root}:{ledger}:"
            if prefix == namespace.known() or not name.startswith((_QUEUE, _WORKERS)):
                continue
            stranger = found.setdefault(prefix, Stranger(prefix))
            if name.startswith(_QUEUE):
                stranger.messages += _length(client.llen(key))
            else:
                members: Any = client.smembers(key)
                # Routing key, pattern and queue; the queue is worker@host.celery.pidbox.
                names = (member.decode().rpartition("\x06\x16")[2] for member in members)
                stranger.workers += sorted(n.removesuffix(".celery.pidbox") for n in names)
    except redis.ResponseError:
        return []
    return [
        found[prefix] for prefix in sorted(found) if found[prefix].messages or found[prefix].workers
    ]


def _length(answer: Any) -> int:
    return int(answer)


def _keys(client: redis.Redis) -> Iterator[str]:
    cursor = 0
    for _ in range(SCANS):
        answer: Any = client.scan(cursor, match=f"{namespace.ROOT}*", count=KEYS_A_SCAN)
        cursor, keys = answer
        yield from (key.decode(errors="replace") for key in keys)
        if not cursor:
            return
