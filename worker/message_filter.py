"""Lets only wake-ups of our own tasks through from Redis to Celery.

Celery trusts its broker: one item that is not JSON ends the consumer, and a header can set the
time limit of a task or name a callback. So a message of a task queue is never passed on as it
came. What it may say is read and checked (task, ids, place in a chord), and a message of our own
is written from that. A message without these is logged and dropped: whatever was ours is published
again from the ledger. Anyone who may write to Redis can still stop workers by remote control.
"""

from __future__ import annotations

import base64
import json
from typing import Annotated, Any, Literal

import structlog
from celery import uuid
from kombu.transport import redis
from kombu.utils.encoding import bytes_to_str
from pydantic import BaseModel, Field, ValidationError

from producer.broker import transport
from producer.broker.messages import QUEUES
from producer.broker.queue import ADVANCE
from worker.tasks import BATCH_TASKS

# Two ids and the names around them take 1,500 bytes; nothing of ours grows with the data.
LARGEST_BYTES = 8192
# Kombu reads this in place of a refused item, looks at the next queue, and drops it in `_deliver`.
_NOTHING = b"null"
_HEADERS = {"task", "id", "group", "group_index"}
log = structlog.get_logger("migration.gate")


class Refused(Exception):
    """A message that is not ours: the field and the rule that it breaks, never its content."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field, self.reason = field, reason


Id = Annotated[str, Field(pattern="^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
RunId = Annotated[str, Field(pattern="^[0-9a-z-]{1,40}$")]
BatchId = Annotated[int, Field(strict=True, ge=1, le=2**63 - 1)]


class WakeUp(BaseModel):
    """All that a message may say."""

    task: Literal[(ADVANCE, *BATCH_TASKS)]  # type: ignore[valid-type]
    id: Id
    group: Id | None
    group_index: Annotated[int, Field(strict=True, ge=0, le=2**31)] | None
    arguments: tuple[RunId, BatchId] | tuple[RunId]
    in_chord: bool


def admit(queue: str, item: bytes) -> bytes:
    """The message to pass on in place of this one; raises Refused if it wakes no task of ours."""
    if len(item) > LARGEST_BYTES:
        raise Refused("message", f"Longer than {LARGEST_BYTES} bytes")
    try:
        message = json.loads(item)
        headers = {name: message["headers"].get(name) for name in _HEADERS}
        # The second are keyword arguments: our tasks take none.
        arguments, _, links = json.loads(base64.b64decode(message["body"], validate=True))
        in_chord = bool(links["chord"])
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
        raise Refused("message", "Not a task message of Celery") from None
    try:
        found = WakeUp(**headers, arguments=arguments, in_chord=in_chord)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise Refused(str(first["loc"][0]), first["msg"]) from None
    if (found.task == ADVANCE) != (len(found.arguments) == 1):
        raise Refused("arguments", "Not those of the task")
    return _written(queue, found)


def _written(queue: str, message: WakeUp) -> bytes:
    callback = {
        "task": ADVANCE,
        "args": message.arguments[:1],
        "kwargs": {},
        "options": {"queue": "migration.control", "task_id": uuid()},
        "subtask_type": None,
        "immutable": True,
    }
    links = {"callbacks": None, "errbacks": None, "chain": None}
    chord = {"chord": callback if message.in_chord else None}
    body = json.dumps([message.arguments, {}, links | chord]).encode()
    return json.dumps(
        {
            "body": base64.b64encode(body).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": message.model_dump(include=_HEADERS)
            | {"lang": "py", "root_id": message.id, "argsrepr": repr(message.arguments)},
            "properties": {
                "correlation_id": message.id,
                "delivery_info": {"exchange": "", "routing_key": queue},
                "delivery_tag": uuid(),
                "body_encoding": "base64",
            },
        }
    ).encode()


def check(queue: str, item: bytes) -> bytes:
    """The message for Celery, or what stands for nothing; never raises."""
    try:
        return admit(queue, item)
    except Refused as refused:
        field, reason = refused.field, refused.reason
    except Exception as bug:
        # Celery's event loop would take any error for a broken connection, or die of it.
        field, reason = "message", f"A bug of the gate: {type(bug).__name__}"
    log.warning("message refused", queue=queue, bytes=len(item), field=field, reason=reason)
    return _NOTHING


class Client(transport.Client):
    """Checks the items of task queues; replies of remote control are passed on as they are."""

    def parse_response(self, connection: Any, command_name: str, **options: Any) -> Any:
        """The server's answer to one command."""
        answer = super().parse_response(connection, command_name, **options)
        if command_name != "BRPOP" or not answer:
            return answer
        key, item = answer
        queue = bytes_to_str(key).rsplit(redis.Channel.sep, 1)[0]
        return (key, check(queue, item)) if queue in QUEUES else answer


class Channel(transport.Channel):
    """Kombu's channel with our client."""

    Prefixed = Client


class Transport(transport.Transport):
    """Kombu's transport with our channel; drops what stands for a refused item."""

    Channel = Channel
    # Kombu 5.7 closes a lost connection twice, and trips over what the first time has cleared.
    connection_errors = (*redis.Transport.connection_errors, AttributeError)

    def _deliver(self, message: Any, queue: str | None) -> None:
        if message is not None:
            super()._deliver(message, queue)
