"""Every key of a Redis, of every type and with its time to live: written out, and put back."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from models.errors import MigrationError
from producer.broker.refusals import of_redis

KEYS_A_SCAN = 1_000
REDIS_PORT = 6379


class NotRestored(MigrationError):
    """A key could not be put back."""

    kind = "not_restored"


@contextmanager
def connected(url: str, database: int | None = None) -> Iterator[redis.Redis]:
    """A client of one database of the server; bytes in, bytes out."""
    options: dict[str, Any] = {"socket_timeout": 60, "socket_connect_timeout": 10}
    client = redis.Redis.from_url(url, **options)
    if database is not None:
        client.connection_pool.connection_kwargs["db"] = database
    try:
        yield client
    finally:
        client.close()


@dataclass(frozen=True)
class Place:
    """One database of a Redis server, and which settings name it: `redis`, `broker`, `results`."""

    url: str
    number: int
    roles: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"Redis {server_of(self.url)} database {self.number}"

    def is_same(self, other: Place) -> bool:
        """True for the same database, whichever address leads to it."""
        mine, its = server_of(self.url), server_of(other.url)
        return (mine, self.number) == (its, other.number)

    def keys(self) -> int:
        """How many keys it holds."""
        with connected(self.url, self.number) as client:
            return int(client.dbsize())


def server_of(url: str) -> str:
    """`host:port`, or the path of a Unix socket, without a password."""
    options = redis.Redis.from_url(url).connection_pool.connection_kwargs
    return str(
        options.get("path")
        or f"{options.get('host', 'localhost')}:{options.get('port', REDIS_PORT)}"
    )


def places(urls: dict[str, str], *, whole_servers: bool = False) -> list[Place]:
    """The databases that the settings name, each once; with `whole_servers` all that hold keys."""
    found: dict[tuple[str, int], Place] = {}
    for role, url in urls.items():
        with connected(url) as client:
            number = int(client.connection_pool.connection_kwargs.get("db") or 0)
            server = str(client.info("server").get("run_id") or server_of(url))
            others = databases(url) if whole_servers else []
        named = found.get((server, number), Place(url, number))
        found[server, number] = Place(named.url, number, (*named.roles, role))
        for other in others:
            found.setdefault((server, other), Place(url, other))
    return sorted(found.values(), key=lambda place: not place.roles)


def version(url: str) -> str:
    """What the server says that it is, and its version."""
    with connected(url) as client:
        said = client.info("server")
    return f"{said.get('server_name', 'redis')} {said.get('valkey_version', said['redis_version'])}"


def databases(url: str) -> list[int]:
    """The numbers of the databases that hold keys."""
    with connected(url) as client:
        return sorted(int(name.removeprefix("db")) for name in client.info("keyspace"))


def save(sources: dict[str, Place], path: Path) -> dict[str, dict[str, str]]:
    """Write all keys of some databases, a JSON line each.

    Returns a digest by the source's name and key (base64). A key that changes meanwhile is as it
    was at one moment of its own.
    """
    digests: dict[str, dict[str, str]] = {}
    with path.open("w", encoding="ascii") as out:
        for place, source in sources.items():
            with connected(source.url, source.number) as client:
                mine = digests.setdefault(place, {})
                for key in client.scan_iter(count=KEYS_A_SCAN):
                    dumped = _dump(client, key)
                    if dumped is None:
                        continue
                    value, expires_at, digest = dumped
                    name = base64.b64encode(key).decode()
                    mine[name] = digest
                    line = {
                        "place": place,
                        "key": name,
                        "expires_at_ms": expires_at,
                        "value": base64.b64encode(value).decode(),
                    }
                    out.write(json.dumps(line) + "\n")
    return digests


def load(path: Path, targets: dict[str, Place], emptied: Iterable[Place]) -> dict[Place, set[str]]:
    """Put keys back into the target of their place; `emptied` lose first what they hold.

    What has no target is left out. Returns the keys without an end. Safe to repeat. A key whose
    time has come since is not put back.
    """
    for place in emptied:
        with connected(place.url, place.number) as client:
            client.flushdb()
    lasting: dict[Place, set[str]] = {}
    with ExitStack() as stack, path.open(encoding="ascii") as lines:
        clients = {
            place: stack.enter_context(connected(place.url, place.number))
            for place in set(targets.values())
        }
        for line in lines:
            entry = json.loads(line)
            # Version 0.1 named the number of the database only.
            target = targets.get(str(entry.get("place", entry.get("database"))))
            if target is None:
                continue
            client = clients[target]
            key, value = (base64.b64decode(entry[name]) for name in ("key", "value"))
            expires_at = entry["expires_at_ms"]
            if expires_at and expires_at <= _now_ms(client):
                continue
            try:
                client.restore(key, expires_at or 0, value, replace=True, absttl=bool(expires_at))
            except redis.ResponseError as failure:
                raise NotRestored(
                    f"{target} refuses a key: {of_redis(failure)}",
                    hint="A newer server wrote it: restore into the same version, or newer.",
                ) from None
            if not expires_at:
                lasting.setdefault(target, set()).add(entry["key"])
    return lasting


def digests(place: Place) -> dict[str, str]:
    """A digest of each key's type and content, by key (base64)."""
    with connected(place.url, place.number) as client:
        return {
            base64.b64encode(key).decode(): _digest(client, key)
            for key in client.scan_iter(count=KEYS_A_SCAN)
        }


def _dump(client: redis.Redis, key: bytes) -> tuple[bytes, int | None, str] | None:
    """The value as DUMP gives it, its end in Unix milliseconds, a digest; None: it is gone."""
    for _ in range(5):
        with client.pipeline(transaction=True) as pipe:
            pipe.dump(key)
            pipe.pttl(key)
            pipe.time()
            value, left, (seconds, micros) = pipe.execute()
        digest = _digest(client, key)
        if client.dump(key) == value:
            break
    if value is None:
        return None
    now = seconds * 1000 + micros // 1000
    return value, now + left if left >= 0 else None, digest


def _now_ms(client: redis.Redis) -> int:
    seconds, micros = client.time()
    return int(seconds * 1000 + micros // 1000)


def _digest(client: redis.Redis, key: bytes) -> str:
    """Of the content in an order of its own: the DUMP of a set or a hash has none to rely on."""
    kind = str(client.type(key), "ascii")  # type: ignore[arg-type]  # Bytes, as `connected` has it.
    content: Any
    if kind == "string":
        content = client.get(key)
    elif kind == "list":
        content = client.lrange(key, 0, -1)
    elif kind == "set":
        content = sorted(client.smembers(key))
    elif kind == "zset":
        content = client.zrange(key, 0, -1, withscores=True)
    elif kind == "hash":
        content = sorted(client.hgetall(key).items())
    elif kind == "stream":
        groups = [
            (group["name"], group["last-delivered-id"], group["pending"])
            for group in client.xinfo_groups(key)
        ]
        content = [client.xrange(key), sorted(groups)]
    else:
        # A module's type: its DUMP is all that is known of it.
        content = client.dump(key)
    return hashlib.sha256(f"{kind} {content!r}".encode()).hexdigest()
