"""The tasks: message in, one call out. One task a step, so that Flower's names mean something."""

from __future__ import annotations

import os
import socket
from typing import Any

from models.steps import STEPS
from producer import enqueue
from producer.connect import engine, settings
from producer.queue import ADVANCE, app
from worker import batch


def _do(run_id: str, batch_id: int) -> dict[str, str]:
    worker = batch.worker_name(socket.gethostname(), os.getpid())
    return batch.run(engine(), settings().base, run_id, batch_id, worker)


def _register(name: str) -> None:
    @app.task(name=name, ignore_result=True)
    def task(run_id: str, batch_id: int) -> dict[str, str]:
        return _do(run_id, batch_id)


for _name in [f"migration.{step.name}" for step in STEPS] + [
    "migration.verify",
    "migration.reconcile",
]:
    _register(_name)


@app.task(name=ADVANCE, ignore_result=True)
def advance(run_id: str, *_: Any) -> None:
    """The body of every chord: open what comes next."""
    enqueue.advance(engine(), settings().base, run_id)
