"""The embedded Valkey, which speaks Redis: started, found and stopped under the home's lock."""

from __future__ import annotations

from pathlib import Path

from models.errors import Misconfigured
from producer.embedded.directories import REDIS_SOCKET, Place
from producer.embedded.processes import (
    PATIENCE_SECONDS,
    ask,
    find_server,
    find_servers,
    stop_servers,
    tail,
    until,
)
from producer.embedded.programs import reachable

SETTINGS = {
    "port": "0",
    "unixsocketperm": "700",
    # A killed server must not lose the queue; the log alone is the durable copy.
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    # Evicting would drop messages in silence.
    "maxmemory-policy": "noeviction",
}


def run_redis(program: Path, place: Place) -> None:
    """Start Valkey with its data in `place.redis`, unless it runs; returns once it answers.

    Raises Misconfigured with the end of its log when it does not start.
    """
    if is_running(place) and _has_loaded(place):
        return
    # One that nobody can reach: its socket, or its home, was deleted.
    stop_servers(place.tag, "valkey-server")
    log = place.redis / "log"
    settings = SETTINGS | {
        "unixsocket": str(place.sockets / REDIS_SOCKET),
        "dir": str(place.redis),
        "pidfile": str(place.redis / "pid"),
        "logfile": str(log),
        "daemonize": "yes",
    }
    arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
    started = place.owner.run(reachable(program, place), *arguments)
    # It leaves before it listens, and says why it could not start in its log only.
    until(
        lambda: is_running(place) or not find_servers(place.tag, "valkey-server"),
        PATIENCE_SECONDS,
    )
    if not _has_loaded(place):
        raise Misconfigured(
            "The embedded Redis did not start",
            hint=f"What it said:\n{tail(log) or started.stderr or started.stdout}",
        )


def is_running(place: Place) -> bool:
    """True when the server lives and listens, even while it still loads its data."""
    return _lives(place) and _says(place, b"") is not None


def _has_loaded(place: Place) -> bool:
    """Wait until a running server has loaded its data; False if it gave up on that."""
    return until(
        lambda: _says(place, b"PING\r\n") in (b"+PONG\r\n", None), PATIENCE_SECONDS
    ) and is_running(place)


def _lives(place: Place) -> bool:
    try:
        pid = int((place.redis / "pid").read_text())
    except (OSError, ValueError):
        return False
    return find_server(pid, "valkey-server", place.tag) is not None


def _says(place: Place, question: bytes) -> bytes | None:
    return ask(place.sockets / REDIS_SOCKET, question)
