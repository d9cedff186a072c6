"""Redis as it is at one moment: queues, unacknowledged messages, chords, workers that answer."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import Any

import redis
from kombu.exceptions import OperationalError

from models.reports.diagnosis import Chord, Worker
from producer.broker import namespace, strangers
from producer.broker.messages import QUEUES
from producer.broker.queue import app
from producer.broker.refusals import of_redis
from producer.broker.strangers import Stranger

PING_SECONDS = 1.0
MOST_CHORDS = 100
REDIS_ERRORS = (redis.RedisError, OperationalError, OSError)
_PROBE = "doctor"


@dataclass
class Broker:
    """Redis as found. `down` and `refuses` hold its own words, or nothing where all is well."""

    down: str = ""
    refuses: str = ""
    messages: dict[str, int] = field(default_factory=dict)
    held: list[tuple[str, int | None]] = field(default_factory=list)
    chords: list[Chord] = field(default_factory=list)
    workers: list[Worker] = field(default_factory=list)
    strangers: list[Stranger] = field(default_factory=list)

    @property
    def word(self) -> str:
        """The state in one word or two."""
        return "down" if self.down else "refuses writes" if self.refuses else "answers"


def look() -> Broker:
    """Look at Redis and ask the workers; never raises for what Redis does."""
    found = Broker()
    try:
        with app.connection_for_read() as connection:
            connection.ensure_connection(max_retries=1)
            channel: Any = connection.default_channel
            # A client of kombu's prefixes the keys of some commands and not of others.
            client = redis.Redis(connection_pool=channel.client.connection_pool)
            prefix = namespace.known()
            # First what waits and then what is held: a message on its way is seen at least once.
            found.messages = {name: _int(client.llen(prefix + name)) for name in QUEUES}
            held: Any = client.hvals(prefix + channel.unacked_key)
            found.held = [_task_and_batch(value) for value in held]
            found.chords = _chords()
            found.strangers = strangers.look(client)
            try:
                client.set(prefix + _PROBE, 1, ex=1)
            except redis.ResponseError as refusal:
                found.refuses = of_redis(refusal)
            if not found.refuses:
                found.workers = _workers()
    except REDIS_ERRORS as failure:
        found.down = of_redis(failure)
    return found


def present() -> Broker:
    """The workers that answer, and no more of Redis; never raises for what it does."""
    found = Broker()
    namespace.refresh()
    try:
        with app.connection_for_read() as connection:
            connection.ensure_connection(max_retries=1)
        found.workers = _workers()
    except REDIS_ERRORS as failure:
        found.down = of_redis(failure)
    except KeyError:
        # Kombu counts on a key that was just written, which a cluster has elsewhere.
        found.down = "its answers are not those of a single server"
    return found


def _int(value: Any) -> int:
    return int(value or 0)


def _task_and_batch(value: bytes) -> tuple[str, int | None]:
    """The task's name and the batch of a message as kombu keeps it until it is acknowledged."""
    try:
        message = json.loads(value)[0]
        arguments = json.loads(base64.b64decode(message["body"]))[0]
        batch = arguments[1] if len(arguments) > 1 else None
        return str(message["headers"]["task"]), batch
    except (ValueError, LookupError, TypeError):
        return "unknown", None


def _chords() -> list[Chord]:
    """The chords that are open in the result backend, which may be another Redis."""
    backend: Any = app.backend
    found: list[Chord] = []
    pattern = backend.get_key_for_group("*", ".s")
    start = len(pattern) - len(b"*.s")
    for key in backend.client.scan_iter(pattern, count=1000):
        chord_id = key[start : -len(b".s")].decode()
        returned = backend.client.scard(backend.get_key_for_group(chord_id, ".d"))
        size = _int(backend.client.get(key))
        found.append(Chord(id=chord_id, size=size, returned=returned))
        if len(found) == MOST_CHORDS:
            break
    return found


def answers(question: str, seconds: float, most: int | None = None) -> dict[str, Any]:
    """What workers answer to a question of Celery's inspection, by worker.

    The last answer ends the wait: of `most`, or of the workers that listen. One of these may be
    frozen, and is waited for so many seconds.
    """
    control: Any = app.control
    if most is None:
        with app.connection_for_read() as connection:
            channel: Any = connection.default_channel
            most = channel.listeners(control.mailbox.exchange.name)
    if most == 0:
        return {}
    return getattr(control.inspect(timeout=seconds, limit=most), question)() or {}


def _workers() -> list[Worker]:
    stats = answers("stats", PING_SECONDS)
    serve = answers("active_queues", PING_SECONDS, most=len(stats))
    return [
        Worker(
            name=name,
            processes=sorted({values["pid"], *values.get("pool", {}).get("processes", ())}),
            queues=sorted(queue["name"] for queue in serve.get(name) or ()),
        )
        for name, values in sorted(stats.items())
    ]
