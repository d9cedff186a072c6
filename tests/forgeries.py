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
# Where a message is none of Celery's.
NONE = "message"


@dataclass(frozen=True)
class Kind:
    """One way of being wrong, and the field for which it is refused.

    Without a field, it is passed on as a real message: what is wrong is left out.
    """

    name: str
    field: str
    make: Callable[[Random, str], bytes]

    def __str__(self) -> str:
        return self.name


def _raw(name: str, *items: bytes) -> Kind:
    return Kind(name, NONE, lambda random, queue: random.choice(items))


def _truncated(random: Random, queue: str) -> bytes:
    item = json.dumps(real(random, queue)).encode()
    return item[: random.randrange(len(item))]


def _not_utf8(random: Random, queue: str) -> bytes:
    return json.dumps(real(random, queue)).encode().replace(b"gen1", b"\xff\xfe")


def _with(field: str, path: str, *values: Any, task: str = "") -> Iterator[Kind]:
    """A real message with another value in one place; a kind for each value."""
    *names, last = path.split(".")
    for value in values:

        def make(random: Random, queue: str, value: Any = value) -> bytes:
            message = real(random, queue)
            message["headers"]["task"] = task or message["headers"]["task"]
            place = message
            for name in names:
                place = place[name]
            place[last] = value
            return json.dumps(message).encode()

        yield Kind(f"{task}{path}={str(value)[:50]}", field, make)


def _without(field: str, *paths: str) -> Iterator[Kind]:
    for path in paths:
        *names, last = path.split(".")

        def make(random: Random, queue: str, names: Any = names, last: str = last) -> bytes:
            message = real(random, queue)
            place = message
            for name in names:
                place = place[name]
            del place[last]
            return json.dumps(message).encode()

        yield Kind(f"without {path}", field, make)


def _body(field: str, *bodies: Any) -> Iterator[Kind]:
    """A real message around another body; a kind for each."""
    return _with(field, "body", *map(encoded, bodies))


def _arguments(*arguments: Any, task: str = "") -> Iterator[Kind]:
    bodies = [encoded([each, {}, NO_LINKS]) for each in arguments]
    return _with("arguments", "body", *bodies, task=task)


def _chord(**change: Any) -> Any:
    return [[RUN, 1], {}, NO_LINKS | {"chord": callback(Random(1)) | change}]


_LINK = {"task": "celery.backend_cleanup", "args": [PERSONAL], "kwargs": {}, "options": {}}
_PICKLE = pickle.dumps({"user": PERSONAL})

KINDS: tuple[Kind, ...] = (
    _raw("not JSON", b"", b"hello", PERSONAL.encode(), b"<xml/>", b"\x00" * 50, _PICKLE),
    _raw(
        "another type", b"[]", b"7", b"null", b"true", b'"text"', b'[{"task": "migration.users"}]'
    ),
    _raw("deep", b"[" * 8000, b'{"a":' * 1500),
    _raw("numbers beyond bounds", b"9" * 8000, b'{"body": 1' + b"0" * 7000 + b"}", b"1e999999"),
    Kind("truncated", NONE, _truncated),
    Kind("not UTF-8", NONE, _not_utf8),
    Kind(
        "a string beyond bounds",
        NONE,
        lambda random, queue: json.dumps(real(random, queue, "x" * 1_000_000)).encode(),
    ),
    _raw("empty", b"{}", b'{"body": "\\ud800"}'),
    Kind(
        "of Celery's first protocol",
        NONE,
        lambda random, queue: json.dumps(
            {"task": TASKS[queue], "id": new_id(random), "args": [RUN, 1], "kwargs": {}}
        ).encode(),
    ),
    *_without(NONE, "body", "headers"),
    *_with(NONE, "headers", None, 7, [], PERSONAL),
    *_with(NONE, "body", None, 7, [], {}, [[RUN, 1], {}, NO_LINKS]),
    *_with(NONE, "body", "", "%%%", "abc", "é", PERSONAL, json.dumps([[RUN, 1], {}, NO_LINKS])),
    *_with(NONE, "body", base64.b64encode(_PICKLE).decode(), base64.b64encode(b"[[").decode()),
    *_with(NONE, "body", base64.b64encode(zlib.compress(encoded(_chord()).encode())).decode()),
    *_body(NONE, {}, 7, None, PERSONAL, {"args": [RUN, 1], "kwargs": {}}, [], [[RUN, 1]]),
    *_body(NONE, [[RUN, 1], {}], [[RUN, 1], {}, NO_LINKS, PERSONAL]),
    *_body(NONE, [[RUN, 1], {}, None], [[RUN, 1], {}, []], [[RUN, 1], {}, PERSONAL]),
    *_without("task", "headers.task"),
    *_with("task", "headers.task", None, 7, "", [], {}, ["migration.users"], {"task": 1}),
    *_with("task", "headers.task", "migration.nowhere", "os.system", PERSONAL, "MIGRATION.USERS"),
    *_with("task", "headers.task", "celery.chord_unlock", "celery.map", "celery.backend_cleanup"),
    *_with("task", "headers.task", "celery.group", "celery.chain", "celery.accumulate"),
    *_without("id", "headers.id"),
    *_with("id", "headers.id", None, 7, [], {}, "", PERSONAL),
    *_with("group", "headers.group", 7, [], PERSONAL, "*"),
    *_with("group_index", "headers.group_index", -1, "first", 1.5, 10**30, True),
    *_arguments({}, None, PERSONAL, 7, [RUN, 1, 2], {"run_id": RUN}, [], [RUN]),
    *_arguments([7, 1], [None, 1], ["", 1], ["x" * 41, 1], [PERSONAL, 1], [[RUN], 1]),
    *_arguments(["'; DROP TABLE users; --", 1], ["\x00", 1], [f"{RUN}\n", 1], ["\ud800", 1]),
    *_arguments([RUN, "1"], [RUN, 1.0], [RUN, 1.5], [RUN, True], [RUN, None]),
    *_arguments([RUN, -1], [RUN, 0], [RUN, 2**63], [RUN, 10**400], [RUN, [1]]),
    *_arguments([RUN, 1], [], [7], ["'; DROP TABLE users; --"], task="migration.advance"),
    *_without("", "properties", "content-type", "content-encoding"),
    *_with("", "properties", None, 7, [], PERSONAL),
    *_with("", "properties.delivery_tag", None, {}, "", PERSONAL, "../unacked"),
    *_with("", "properties.delivery_info", None, 7, PERSONAL),
    *_with("", "properties.delivery_info.routing_key", None, [], "celery", "migration.nowhere"),
    *_with("", "properties.body_encoding", None, "utf-8", 7, [PERSONAL]),
    *_with("", "properties.priority", None, "high", -1, 10**30),
    *_with("", "properties.reply_to", 7, PERSONAL),
    *_with("", "content-type", "application/x-python-serialize", "application/x-yaml", None, 7),
    *_with("", "content-encoding", "binary", "rot13", None, 7, {}),
    *_with("", "headers.eta", "2999-01-01T00:00:00+00:00", "tomorrow", 7, [], "9" * 400),
    *_with("", "headers.expires", "1999-01-01T00:00:00+00:00", "never", -1, {}, 10**30),
    *_with("", "headers.retries", None, "x", -1, 10**30),
    *_with("", "headers.timelimit", [1, None], [0.001, 0.001], [None, 1], None, 7, PERSONAL),
    *_with("", "headers.root_id", 7, {}, PERSONAL),
    *_with("", "headers.shadow", PERSONAL, 7),
    *_with("", "headers.argsrepr", 7, [], PERSONAL),
    *_with("", "headers.ignore_result", "no", 0),
    *_with("", "headers.stamps", None, {PERSONAL: 1}),
    *_with("", "headers.stamped_headers", [PERSONAL], "x"),
    *_with("", "headers.compression", "application/x-gzip", 7),
    *_with("", "headers.chord", callback(Random(6)), PERSONAL),
    *_body("", *([[RUN, 1], kwargs, _chord()[2]] for kwargs in ([], None, {PERSONAL: 1}))),
    *_body("", *([*_chord()[:2], _chord()[2] | {name: [_LINK]}]
                 for name in ("callbacks", "errbacks", "chain"))),
    *_body("", _chord(task="celery.backend_cleanup"), _chord(args=[PERSONAL]), _chord(args=None)),
    *_body("", _chord(options={"queue": "celery"}), _chord(kwargs={PERSONAL: 1})),
    *_body("", _chord(subtask_type="chord"), _chord(immutable=False)),
    *_body("", [*_chord()[:2], NO_LINKS | {"chord": PERSONAL}]),
)  # fmt: skip


def huge(random: Random, queue: str) -> bytes:
    """A message of 10 MB that is right in all but its size."""
    message = real(random, queue) | {"padding": PERSONAL + "x" * HUGE_BYTES}
    return json.dumps(message).encode()


def many(random: Random, count: int) -> Iterator[tuple[str, str, bytes]]:
    """Queue, place of the error, and item of so many bad messages, every kind among them."""
    for number in range(count):
        kind, queue = KINDS[number % len(KINDS)], random.choice(QUEUES)
        yield queue, kind.field, kind.make(random, queue)
