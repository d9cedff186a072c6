"""The tasks: message in, one call out. One task a step, so that Flower's names mean something."""

from __future__ import annotations

import os
import socket
from typing import Any

from celery.exceptions import Reject

from models.engine import current
from models.errors import Stopped
from producer import tracing
from producer.broker.queue import ADVANCE, app
from producer.connect import engine, settings
from producer.runs import advance as enqueue
from worker import batch, throttle

# A batch that hangs outside SQL would renew its lease for ever. Its process is killed after this
# time, below the broker's visibility timeout, so that the message never runs in two places.
HARD_LIMIT_SECONDS = 1800

# An index of a large table may take hours, and cannot be resumed where it was: no limit.
BATCH_TASKS: dict[str, int | None] = {
    f"migration.{step.name}": HARD_LIMIT_SECONDS if step.transactional else None
    for step in (*current.migration().steps, *current.migration().undo_steps)
} | {"migration.verify": HARD_LIMIT_SECONDS, "migration.reconcile": HARD_LIMIT_SECONDS}


_throttle = throttle.Throttle()


def _do(name: str, run_id: str, batch_id: int) -> dict[str, str]:
    try:
        _throttle.wait(engine(), settings().base, run_id)
    except Stopped:
        raise Reject("not begun", requeue=True) from None
    worker = batch.worker_name(socket.gethostname(), os.getpid())
    traced = {"migration.batch": batch_id, "migration.worker": worker}
    with tracing.task(settings().base, name, run_id, **traced) as found:
        ended = batch.run(engine(), settings().base, run_id, batch_id, worker)
        found |= {f"migration.{key}": value for key, value in ended.items()}
    return ended


def _register(name: str, time_limit: int | None) -> None:
    @app.task(name=name, ignore_result=True, time_limit=time_limit)  # type: ignore[arg-type]
    def task(run_id: str, batch_id: int) -> dict[str, str]:
        return _do(name, run_id, batch_id)


for _name, _limit in BATCH_TASKS.items():
    _register(_name, _limit)


@app.task(name=ADVANCE, ignore_result=True)
def advance(run_id: str, *_: Any) -> None:
    """The body of every chord: open what comes next."""
    with tracing.task(settings().base, ADVANCE, run_id):
        enqueue.advance(engine(), settings().base, run_id)
