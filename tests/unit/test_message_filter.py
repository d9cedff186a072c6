"""What the gate lets pass, and what it refuses, by name and without a word of what stood there."""

from __future__ import annotations

import base64
import copy
import json
import subprocess
from collections.abc import Callable
from contextlib import closing
from importlib import import_module
from random import Random
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu import Connection
from structlog.testing import capture_logs

from producer.broker.namespace import NO_LEDGER
from tests import forgeries
from tests.forgeries import KINDS, PERSONAL, Kind
from tests.genuine import QUEUES, encoded, real
from worker.message_filter import LARGEST_BYTES, Refused, Transport, admit, check

# Every way in which the product publishes: as the producer and as a worker, in chords and alone,
# and a message that came back.
PUBLISH = """
from producer.broker.messages import QUEUES, Message
from producer.broker.queue import app, publish_again, publish_window
from models.engine import current
messages = [
    Message("20261122-221104-752c", 2**63 - 1, stage, step.name)
    for stage in current.migration().stages for step in current.migration().steps_of(stage)
]
def publish():
    publish_window(messages)
    publish_again(messages)
    app.signature(
        "migration.advance", ("20261122-221104-752c",), queue="migration.control", immutable=True
    ).apply_async(group_id="1886ba7a-6cc8-4f87-b15d-8d8455c2cd79")
publish()
import worker.tasks
publish()
with app.connection_for_read() as connection:
    taken = []
    with app.amqp.TaskConsumer(connection, on_message=taken.append):
        connection.drain_events(timeout=10)
    assert len(taken) == 1
    taken[0].requeue()
print(2 * (2 * len(messages) + 1))
"""
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def plain(item: bytes) -> Any:
    """The message with its body decoded."""
    message = json.loads(item)
    return message | {"body": json.loads(base64.b64decode(message["body"]))}


def said(item: bytes) -> Any:
    """What a message says: the task, its place in a chord, its arguments, what follows it."""
    message = plain(item)
    headers = {name: message["headers"][name] for name in ("task", "id", "group", "group_index")}
    chord = message["body"][2].get("chord")
    if chord:
        chord = chord | {"options": {"queue": chord["options"]["queue"]}}
    return headers, message["body"][:2], chord


def test_every_message_of_the_product_still_says_the_same(
    redis_url: str, run_alone: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    ended = run_alone(PUBLISH)
    assert ended.returncode == 0, ended.stderr
    found, came_back = 0, 0
    with closing(redis.Redis.from_url(redis_url)) as client:
        for queue in QUEUES:
            for item in client.lrange(f"{NO_LEDGER}{queue}", 0, -1):
                assert said(admit(queue, item)) == said(item)
                assert len(item) < LARGEST_BYTES / 4
                found += 1
                came_back += b"redelivered" in item
    assert (found, came_back) == (int(ended.stdout), 1)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_bad_message_is_refused_or_stripped_of_what_is_wrong(kind: Kind) -> None:
    for queue in QUEUES:
        item = kind.make(Random(2), queue)
        with capture_logs() as lines:
            written = check(queue, item)
        assert PERSONAL not in str(lines)
        if not kind.field:
            assert said(written) == said(json.dumps(real(Random(2), queue)).encode())
            assert plain(written)["properties"]["delivery_info"]["routing_key"] == queue
            assert PERSONAL.encode() not in written and not lines
            continue
        (line,) = lines
        assert written == b"null"
        assert (line["event"], line["log_level"]) == ("message refused", "warning")
        assert (line["queue"], line["bytes"], line["field"]) == (queue, len(item), kind.field)
        assert line["reason"]


def test_ten_megabytes_are_refused_unread() -> None:
    item = forgeries.huge(Random(3), "migration.users")
    with pytest.raises(Refused, match="Longer than"):
        admit("migration.users", item)


@pytest.mark.parametrize("url", ["redis://h/1", "rediss://h:1/2", "redis+socket:///a/redis.sock"])
def test_the_gate_stands_before_every_kind_of_address(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in a process of a worker: no test before this one has opened a connection as a producer.
    monkeypatch.setattr("kombu.transport._transport_cache", {})
    # The application of the workers puts it there.
    assert import_module("worker.app")
    assert Connection(url).get_transport_cls() is Transport


@given(st.binary())
def test_no_bytes_make_it_raise(item: bytes) -> None:
    assert check("migration.users", item) == b"null"


@given(VALUES)
def test_no_json_makes_it_raise(value: Any) -> None:
    assert check("migration.users", json.dumps(value).encode()) == b"null"


@settings(max_examples=500)
@given(st.data())
def test_another_value_anywhere_is_refused_or_does_no_harm(data: st.DataObject) -> None:
    message = plain(json.dumps(real(Random(8), "migration.users")).encode())
    changed = copy.deepcopy(message)
    place: Any = changed
    while True:
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(keys))
        if not place[key] or not isinstance(place[key], dict | list) or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(VALUES)
    item = json.dumps(changed | {"body": encoded(changed["body"])}).encode()
    try:
        admitted = admit("migration.users", item)
    except Refused as refused:
        assert refused.field and refused.reason
        return
    assert said(admit("migration.users", admitted)) == said(admitted)
    # It has nothing that a real message lacks.
    assert set(plain(admitted)["headers"]) <= set(message["headers"])
    assert plain(admitted)["body"][1] == {}
