"""Every way in which somebody may get a message wrong."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.genuine import NO_LINKS, QUEUES, RUN, TASKS, callback, encoded, new_id, real

# In most of them: a log line that shows it shows what it must not.
PERSONAL = "pupil@school.example"
HUGE_BYTES = 10_000_000


@dataclass(frozen=True)
class Kind:
    """One way of being wrong, and the place that the gate must name for it."""

    name: str
    field: str
    make: Callable[[Random, str], bytes]

    def __str__(self) -> str:
        return self.name


def _raw(name: str, *items: bytes) -> Kind:
    return Kind(name, "message", lambda random, queue: random.choice(items))


def _truncated(random: Random, queue: str) -> bytes:
    item = json.dumps(real(random, queue)).encode()
    return item[: random.randrange(len(item))]


def _not_utf8(random: Random, queue: str) -> bytes:
    return json.dumps(real(random, queue)).encode().replace(b"gen1", b"\xff\xfe")


def _with(path: str, *values: Any, field: str = "") -> Iterator[Kind]:
    """A real message with another value in one place; a kind for each value."""
    names = path.split(".")
    for value in values:

        def make(random: Random, queue: str, value: Any = value) -> bytes:
            message = real(random, queue)
            place = message
            for name in names[:-1]:
                place = place[name]
            place[names[-1]] = value
            return json.dumps(message).encode()

        yield Kind(f"{path}={str(value)[:30]}", field or path, make)


def _without(*paths: str) -> Iterator[Kind]:
    for path in paths:
        names = path.split(".")

        def make(random: Random, queue: str, names: list[str] = names) -> bytes:
            message = real(random, queue)
            place = message
            for name in names[:-1]:
                place = place[name]
            del place[names[-1]]
            return json.dumps(message).encode()

        yield Kind(f"without {path}", path, make)


def _body(field: str, *bodies: Any, task: str = "") -> Iterator[Kind]:
    """A real message around another body; a kind for each."""
    for body in bodies:

        def make(random: Random, queue: str, body: Any = body) -> bytes:
            message = real(random, queue)
            message["body"] = encoded(body)
            message["headers"]["task"] = task or message["headers"]["task"]
            return json.dumps(message).encode()

        yield Kind(f"{task}{str(body)[:50]}", field, make)


def _chord(field: str, *changes: dict[str, Any]) -> Iterator[Kind]:
    for change in changes:
        chord = callback(Random(1)) | change
        yield from _body(f"body.2.chord.{field}", [[RUN, 1], {}, NO_LINKS | {"chord": chord}])


def _arguments(field: str, *arguments: Any, task: str = "") -> Iterator[Kind]:
    bodies = [[each, {}, NO_LINKS] for each in arguments]
    return _body(f"body.0{field}", *bodies, task=task)


_LINK = {"task": "celery.backend_cleanup", "args": [PERSONAL], "kwargs": {}, "options": {}}
_PICKLE = pickle.dumps({"user": PERSONAL})

KINDS: tuple[Kind, ...] = (
    _raw("not JSON", b"", b"hello", PERSONAL.encode(), b"<xml/>", b"\x00" * 50, _PICKLE),
    _raw(
        "another type", b"[]", b"7", b"null", b"true", b'"text"', b'[{"task": "migration.users"}]'
    ),
    _raw("deep", b"[" * 8000, b'{"a":' * 1500),
    _raw("numbers beyond bounds", b"9" * 8000, b'{"body": 1' + b"0" * 7000 + b"}", b"1e999999"),
    Kind("truncated", "message", _truncated),
    Kind("not UTF-8", "message", _not_utf8),
    Kind(
        "a string beyond bounds",
        "message",
        lambda random, queue: json.dumps(real(random, queue, "x" * 1_000_000)).encode(),
    ),
    _raw("half a surrogate", b'{"body": "\\ud800"}'),
    Kind("empty", "body", lambda random, queue: b"{}"),
    Kind(
        "of Celery's first protocol",
        "body",
        lambda random, queue: json.dumps(
            {"task": TASKS[queue], "id": new_id(random), "args": [RUN, 1], "kwargs": {}}
        ).encode(),
    ),
    *_without("body", "headers", "properties", "content-type", "content-encoding"),
    *_without("headers.task", "headers.id", "properties.delivery_tag"),
    *_without("properties.delivery_info", "properties.body_encoding"),
    *_without("properties.delivery_info.exchange", "properties.delivery_info.routing_key"),
    *_with("headers", None, 7, [], PERSONAL),
    *_with("properties", None, 7, [], PERSONAL),
    *_with("properties.delivery_tag", None, 7, [], {}, "", PERSONAL, "../unacked"),
    *_with("properties.delivery_info", None, 7, [], PERSONAL),
    *_with("properties.delivery_info.exchange", None, 7, PERSONAL),
    *_with("properties.delivery_info.routing_key", None, [], "celery", "migration.nowhere"),
    *_with("properties.delivery_info.redelivered", "yes", 7),
    *_with("properties.body_encoding", None, "utf-8", "hex", 7, [PERSONAL]),
    *_with("properties.priority", None, "high", -1, 10**30, 1.5),
    *_with("properties.reply_to", 7, PERSONAL),
    *_with("properties.correlation_id", 7, PERSONAL),
    *_with("content-type", "application/x-python-serialize", "application/x-yaml", None, 7, []),
    *_with("content-type", "application/data", "application/json; charset=utf-8", ""),
    *_with("content-encoding", "binary", "latin-1", "rot13", None, 7, {}),
    *_with("headers.task", None, 7, "", [], {}, ["migration.users"], {"migration.users": 1}),
    *_with("headers.task", "migration.nowhere", "os.system", PERSONAL, "MIGRATION.USERS"),
    *_with("headers.task", "celery.chord_unlock", "celery.map", "celery.backend_cleanup"),
    *_with("headers.task", "celery.group", "celery.chain", "celery.chord", "celery.accumulate"),
    *_with("headers.id", None, 7, [], {}, "", PERSONAL),
    *_with("headers.eta", "2999-01-01T00:00:00+00:00", "tomorrow", 7, [], "9" * 400),
    *_with("headers.expires", "1999-01-01T00:00:00+00:00", "never", -1, {}, 10**30),
    *_with("headers.retries", None, "x", -1, 1, 10**30, True),
    *_with("headers.timelimit", [1, None], [10**30, None], [0, None], None, 7, PERSONAL),
    *_with("headers.timelimit", [0.001, 0.001], ["x", None], field="headers.timelimit.0"),
    *_with("headers.timelimit", [None, 0.001], [None, 1], field="headers.timelimit.1"),
    *_with("headers.group", 7, [], PERSONAL, "*"),
    *_with("headers.group_index", -1, "first", 1.5, 10**30),
    *_with("headers.root_id", 7, {}, PERSONAL),
    *_with("headers.parent_id", 7, [], PERSONAL),
    *_with("headers.shadow", PERSONAL, 7),
    *_with("headers.argsrepr", 7, [], "x" * 2000),
    *_with("headers.origin", 7, "x" * 2000),
    *_with("headers.ignore_result", "no", 0),
    *_with("headers.stamps", None, {PERSONAL: 1}),
    *_with("headers.stamped_headers", [PERSONAL], "x"),
    *_with("headers.replaced_task_nesting", -1, "x", 99),
    *_with("headers.compression", "application/x-gzip", "application/x-bz2", 7),
    *_with("body", None, 7, [], {}, [[RUN, 1], {}, NO_LINKS]),
    *_with("body", "", "%%%", "abc", "é", PERSONAL, json.dumps([[RUN, 1], {}, NO_LINKS])),
    *_with("body", base64.b64encode(_PICKLE).decode(), base64.b64encode(b"[[").decode()),
    *_with(
        "body", base64.b64encode(zlib.compress(json.dumps([[RUN, 1], {}, {}]).encode())).decode()
    ),
    *_body("body", {}, 7, None, PERSONAL, {"args": [RUN, 1], "kwargs": {}}),
    *_body("body.0", []),
    *_body("body.1", [[RUN, 1]]),
    *_body("body.2", [[RUN, 1], {}]),
    *_body("body", [[RUN, 1], {}, NO_LINKS, PERSONAL]),
    *_body("body.1", [[RUN, 1], [], NO_LINKS], [[RUN, 1], None, NO_LINKS]),
    *_body("body.1", [[RUN, 1], {PERSONAL: 1}, NO_LINKS], [[RUN, 1], {"run_id": RUN}, NO_LINKS]),
    *_body("body.2", [[RUN, 1], {}, None], [[RUN, 1], {}, []], [[RUN, 1], {}, PERSONAL]),
    *_body("body.2.callbacks", [[RUN, 1], {}, NO_LINKS | {"callbacks": [_LINK]}]),
    *_body("body.2.errbacks", [[RUN, 1], {}, NO_LINKS | {"errbacks": [_LINK]}]),
    *_body("body.2.chain", [[RUN, 1], {}, NO_LINKS | {"chain": [_LINK]}]),
    *_body("body.2.chord", [[RUN, 1], {}, NO_LINKS | {"chord": PERSONAL}]),
    *_chord("task", {"task": "celery.backend_cleanup"}, {"task": "migration.users"}, {"task": []}),
    *_chord("args", {"args": [RUN, 1]}, {"args": None}),
    *_chord("args.0", {"args": []}, {"args": [7]}),
    *_chord("kwargs", {"kwargs": {PERSONAL: 1}}),
    *_chord("options", {"options": None}),
    *_chord("options.queue", {"options": {"queue": "celery", "task_id": RUN}}),
    *_chord("options.task_id", {"options": {"queue": "migration.control", "task_id": PERSONAL}}),
    *_chord("subtask_type", {"subtask_type": "chord"}),
    *_chord("immutable", {"immutable": False}),
    *_arguments("", {}, None, PERSONAL, 7, [RUN, 1, 2], {"run_id": RUN}),
    *_arguments(".0", []),
    *_arguments(".0", [7, 1], [None, 1], ["", 1], ["x" * 41, 1], [PERSONAL, 1], [[RUN], 1]),
    *_arguments(".0", ["'; DROP TABLE users; --", 1], ["\x00", 1], [f"{RUN}\n", 1]),
    *_arguments(".1", [RUN], [RUN, "1"], [RUN, 1.0], [RUN, 1.5], [RUN, True], [RUN, None]),
    *_arguments(".1", [RUN, -1], [RUN, 0], [RUN, 2**63], [RUN, 10**400], [RUN, [1]]),
    *_arguments("", [RUN, 1], task="migration.advance"),
    *_arguments(".0", [], [7], ["'; DROP TABLE users; --"], task="migration.advance"),
)


def huge(random: Random, queue: str) -> bytes:
    """A message of 10 MB that is right in all but its size."""
    message = real(random, queue) | {"padding": PERSONAL + "x" * HUGE_BYTES}
    return json.dumps(message).encode()


def many(random: Random, count: int) -> Iterator[tuple[str, str, bytes]]:
    """Queue, place of the error, and item of so many bad messages, every kind among them."""
    for number in range(count):
        kind, queue = KINDS[number % len(KINDS)], random.choice(QUEUES)
        yield queue, kind.field, kind.make(random, queue)
