"""A backup of a large school and of a Redis with every type of key; all lost, and restored."""

from __future__ import annotations

import time
from contextlib import closing
from typing import Any

import redis
from sqlalchemy import Engine, text

from producer.backup import create, keyspace
from tests.acceptance.test_backup import fill
from tests.soak.site import Site, finish, load


def run(site: Site, users: int) -> dict[str, Any]:
    """Seconds and bytes of both, and what differs in the end: tables, and keys by digest."""
    engine = site.fresh("keep")
    load(engine, users)
    with closing(redis.Redis.from_url(site.servers.redis_url)) as client:
        client.flushall()
        fill(client)
    folder = site.home / "kept"
    before = _state(site, engine)
    started = time.monotonic()
    made = finish(site.producer("backup", str(folder), "--json"))
    backed_up = time.monotonic()
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE users; DROP TABLE projects"))
    with closing(redis.Redis.from_url(site.servers.redis_url)) as client:
        client.flushall()
    emptied = time.monotonic()
    restored = finish(site.producer("restore", str(folder), "--yes", "--json"))
    ended = time.monotonic()
    after = _state(site, engine)
    engine.dispose()
    return {
        "users": users,
        "exit_status": [made["exit_status"], restored["exit_status"]],
        "backup_seconds": round(backed_up - started, 1),
        "restore_seconds": round(ended - emptied, 1),
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "tables": len(before["tables"]),
        "keys": sum(map(len, before["redis"].values())),
        "differ": [name for name in before if before[name] != after[name]],
    }


def _state(site: Site, engine: Engine) -> dict[str, Any]:
    with engine.connect() as connection, connection.begin():
        found = create.describe(connection)
    return found | {"redis": keyspace.digests(site.servers.redis_url)}
