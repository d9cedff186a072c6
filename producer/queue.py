"""The way to the workers: the Celery application, task names, a window as a chord."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from celery import Celery, Signature, chord

from models.steps import RECONCILIATION, VERIFICATION, by_name

ADVANCE = "migration.advance"

app = Celery("migration")
app.config_from_object("celeryconfig")
QUEUES = tuple(queue.name for queue in app.conf.task_queues)


@dataclass(frozen=True)
class Message:
    """What wakes a worker up: ids, nothing else."""

    run_id: str
    batch_id: int
    stage: str
    step: str

    @property
    def task(self) -> str:
        """The task's name, as Flower shows it."""
        verb = {VERIFICATION: "verify", RECONCILIATION: "reconcile"}.get(self.stage, self.step)
        return f"migration.{verb}"

    @property
    def queue(self) -> str:
        """The queue that serves it."""
        return "migration.verify" if self.stage == VERIFICATION else by_name(self.step).queue

    @property
    def signature(self) -> Signature[Any]:
        """The Celery signature; immutable, since nothing may be added to it on the way."""
        return app.signature(
            self.task, args=(self.run_id, self.batch_id), queue=self.queue, immutable=True
        )


def publish_window(messages: Sequence[Message]) -> None:
    """Publish a stage's window as one chord, whose body opens what comes next."""
    if messages:
        first = messages[0]
        body = app.signature(
            ADVANCE, args=(first.run_id,), queue="migration.control", immutable=True
        )
        chord([message.signature for message in messages], app=app)(body)


def publish_again(messages: Sequence[Message]) -> None:
    """Publish messages one by one, outside any chord: what was lost, and what was handed back."""
    with app.producer_or_acquire() as producer:
        for message in messages:
            message.signature.apply_async(producer=producer, ignore_result=True)
