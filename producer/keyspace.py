"""Every key of a Redis, of every type and with its time to live: written out, and put back."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from models.errors import MigrationError
from producer.refusals import of_redis

KEYS_A_SCAN = 1_000


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


def version(url: str) -> str:
    """What the server says that it is, and its version."""
    with connected(url) as client:
        said = client.info("server")
    return f"{said.get('server_name', 'redis')} {said.get('valkey_version', said['redis_version'])}"


def databases(url: str) -> list[int]:
    """The numbers of the databases that hold keys."""
    with connected(url) as client:
        return sorted(int(name.removeprefix("db")) for name in client.info("keyspace"))


def save(url: str, path: Path) -> dict[str, dict[str, str]]:
    """Write all keys, a JSON line each; returns a digest by database and key (base64).

    A key that changes meanwhile is as it was at one moment of its own.
    """
    digests: dict[str, dict[str, str]] = {}
    with path.open("w", encoding="ascii") as out:
        for number in databases(url):
            with connected(url, number) as client:
                mine = digests.setdefault(str(number), {})
                for key in client.scan_iter(count=KEYS_A_SCAN):
                    dumped = _dump(client, key)
                    if dumped is None:
                        continue
                    value, expires_at, digest = dumped
                    name = base64.b64encode(key).decode()
                    mine[name] = digest
                    line = {
                        "database": number,
                        "key": name,
                        "expires_at_ms": expires_at,
                        "value": base64.b64encode(value).decode(),
                    }
                    out.write(json.dumps(line) + "\n")
    return digests


def load(url: str, path: Path) -> dict[str, set[str]]:
    """Put all keys back; what was there goes. Returns those without an end, by database.

    Safe to repeat. A key whose time has come since is not put back.
    """
    for number in databases(url):
        with connected(url, number) as client:
            client.flushdb()
    lasting: dict[str, set[str]] = {}
    with path.open(encoding="ascii") as lines:
        for line in lines:
            entry = json.loads(line)
            with connected(url, entry["database"]) as client:
                key, value = (base64.b64decode(entry[name]) for name in ("key", "value"))
                expires_at = entry["expires_at_ms"]
                if expires_at and expires_at <= _now_ms(client):
                    continue
                try:
                    client.restore(
                        key, expires_at or 0, value, replace=True, absttl=bool(expires_at)
                    )
                except redis.ResponseError as failure:
                    raise NotRestored(
                        f"Redis refuses a key of database {entry['database']}: {of_redis(failure)}",
                        hint="A newer server wrote it: restore into the same version, or newer.",
                    ) from None
                if not expires_at:
                    lasting.setdefault(str(entry["database"]), set()).add(entry["key"])
    return lasting


def digests(url: str) -> dict[str, dict[str, str]]:
    """A digest of each key's type and content, by database and key (base64)."""
    found: dict[str, dict[str, str]] = {}
    for number in databases(url):
        with connected(url, number) as client:
            found[str(number)] = {
                base64.b64encode(key).decode(): _digest(client, key)
                for key in client.scan_iter(count=KEYS_A_SCAN)
            }
    return found


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
