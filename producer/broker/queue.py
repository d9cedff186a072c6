"""The way to the workers: the Celery application, a window as a chord."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery import Celery, uuid
from kombu.exceptions import (  # type: ignore[attr-defined]  # The stubs are older.
    BatchPublishError,
    OperationalError,
)

from producer.broker import namespace, transport
from producer.broker.messages import Message

ADVANCE = "migration.advance"
MESSAGES_A_FLUSH = 500

app = Celery("migration", amqp=transport.AMQP)
app.config_from_object("celeryconfig")
transport.use("producer.broker.transport:Transport")


def _move(prefix: str) -> None:
    """Flower counts queues by itself, with the prefix that it finds here."""
    app.conf.broker_transport_options["global_keyprefix"] = prefix


namespace.on_change(_move)


def publish_window(messages: Sequence[Message]) -> None:
    """Publish a stage's window as one chord, whose body opens what comes next.

    It is the chord that Celery's own `chord(header)(body)` makes, without a round trip a message
    and a signature a message in memory. A failed flush leaves open what was delivered: whatever is
    lost is published again from the ledger.
    """
    if not messages:
        return
    group = uuid()
    body = app.signature(
        ADVANCE,
        args=(messages[0].run_id,),
        queue="migration.control",
        immutable=True,
        task_id=uuid(),
    )
    app.backend.set_chord_size(group, len(messages))
    _publish(messages, group_id=group, chord=dict(body))


def publish_again(messages: Sequence[Message]) -> None:
    """Publish messages outside any chord: what was lost, and what was released."""
    _publish(messages)


def _publish(messages: Sequence[Message], **chord: Any) -> None:
    try:
        with app.producer_or_acquire() as producer, producer.batch(MESSAGES_A_FLUSH):
            _write(producer, messages, **chord)
    except BatchPublishError as failure:
        # It is no error of the connection's own kind, and everybody waits for those.
        raise OperationalError(str(failure.__cause__ or failure)) from failure


def _write(producer: Any, messages: Sequence[Message], **chord: Any) -> None:
    for name in {message.queue for message in messages}:
        producer.maybe_declare(app.amqp.queues[name])
    for index, message in enumerate(messages):
        made = app.amqp.create_task_message(
            uuid(),
            message.task,
            args=(message.run_id, message.batch_id),
            kwargs={},
            group_index=index if chord else None,
            argsrepr=f"({message.run_id!r}, {message.batch_id})",
            kwargsrepr="{}",
            ignore_result=True,
            **chord,
        )
        # What `send_task_message` does for a queue of ours, less a declaration and an event each.
        producer.publish(
            made.body,
            headers=made.headers,
            exchange="",
            routing_key=message.queue,
            serializer="json",
            **made.properties,
        )
