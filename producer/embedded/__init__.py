"""The embedded servers: a real PostgreSQL and a real Valkey from wheels, for when neither
DATABASE_URL nor REDIS_URL is set. They outlive the command that started them until `stop`.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from producer.embedded import directories, postgres, valkey
from producer.embedded.directories import REDIS_SOCKET, Place
from producer.embedded.processes import owner_of, stop_servers
from producer.embedded.programs import postgres_bin_dir, valkey_program


@dataclass(frozen=True)
class Servers:
    """Where the two servers answer: Unix sockets in a folder that only their user can enter."""

    database_url: str
    """`postgresql://postgres@/dashboard?host=<folder>`, for SQLAlchemy and libpq alike."""
    redis_url: str
    """`unix:///<folder>/redis.sock?db=0`, as redis-py writes it."""


def start(home: Path) -> Servers:
    """Start the servers whose data lie under `home`, or find them running.

    Safe to repeat, and from several processes at once; only what is down is started, after
    whatever end the servers had. Returns when both accept connections and the database
    `dashboard` exists. Raises Misconfigured where a wheel, a folder or a privilege is missing or
    a server does not start.
    """
    bin_dir, program = postgres_bin_dir(), valkey_program()
    with directories.locked(home):
        place = directories.prepare(home)
        postgres.run_postgres(bin_dir, place)
        valkey.run_redis(program, place)
    return _servers(place)


def exist(home: Path) -> bool:
    """True where `home` holds an embedded cluster that was initialised before."""
    return os.path.exists(home / "servers" / "postgres" / "data" / "PG_VERSION")


def running(home: Path) -> Servers | None:
    """The servers of `home` if both run, without starting or waiting for anything."""
    place = directories.find(home)
    if place and postgres.is_running(place) and valkey.is_running(place):
        return _servers(place)
    return None


def stop(home: Path) -> bool:
    """Stop the servers of `home`, ending their sessions; True if at least one was running.

    Returns when both are down. The data stay. Works on a home that was deleted meanwhile.
    """
    owner = owner_of(home / "servers" / "postgres")
    with directories.locked(home) if home.exists() else nullcontext():
        return stop_servers(directories.tag_of(home, owner), "postgres", "valkey-server")


def erase(home: Path) -> None:
    """Stop the servers of `home` and delete their data; nothing else of the home."""
    stop(home)
    with directories.locked(home) if home.exists() else nullcontext():
        directories.erase(home)


def bin_dir() -> Path:
    """The folder of psql, pg_dump and pg_restore; raises Misconfigured without the wheel."""
    return postgres_bin_dir()


def _servers(place: Place) -> Servers:
    return Servers(
        database_url=f"postgresql://postgres@/dashboard?host={place.sockets}",
        redis_url=f"unix://{place.sockets / REDIS_SOCKET}?db=0",
    )
