"""The gate between Redis and Celery: messages that are not ours never reach Celery's event loop.

Celery trusts its broker: one item that is not JSON ends the consumer, and a header can set the
time limit of a task. Here a task queue's item is checked first; a bad one is logged and dropped,
since whatever was ours is published again from the ledger. Whoever may write to Redis may still
stop workers by remote control: that is the boundary.
"""

from __future__ import annotations

from typing import Any

import structlog
from kombu.transport import redis
from kombu.utils.encoding import bytes_to_str

from producer.broker import transport
from producer.broker.queue import QUEUES
from worker.message_schema import Refused, admit

log = structlog.get_logger("migration.gate")

# What stands in a refused item's place: Kombu reads it, turns to the next queue, and drops it here.
_NOTHING = b"null"


def check(queue: str, item: bytes) -> bytes:
    """The item for Celery, or what stands for nothing; never raises."""
    try:
        return admit(queue, item)
    except Refused as refused:
        field, reason = refused.field, refused.reason
    except Exception as bug:
        # Whatever it is, the event loop above would take it for a broken connection, or die.
        field, reason = "message", f"A bug of the gate: {type(bug).__name__}"
    log.warning("message refused", queue=queue, bytes=len(item), field=field, reason=reason)
    return _NOTHING


class Client(transport.Client):
    """Reads the items of task queues through the gate; replies of remote control pass by."""

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
