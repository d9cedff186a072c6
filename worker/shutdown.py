"""A worker that is told to stop: what it has not finished after a while, it releases.

Celery's warm shutdown waits for running tasks, however long they take. Docker kills the worker
10 seconds after its SIGTERM, Kubernetes 30.
"""

from __future__ import annotations

import mmap
import struct
import time
from typing import Any

from billiard import pool
from celery.signals import worker_shutting_down

from models.errors import Stopped

# Most batches take two; what is released has the rest of Docker's ten to be undone.
GRACE_SECONDS = 5.0

# A child whose task had not been noted as begun when the signal came waits for an answer that never
# comes, half a minute by default; the ledger and the chord have its result. In tenths of a second.
pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT = 10

# The signal reaches the main process; its children see it here. Both read one monotonic clock.
_asked_at = mmap.mmap(-1, 8)


@worker_shutting_down.connect
def ask(**_: Any) -> None:
    """From now on the grace time runs, for every process of this worker."""
    if _read() == 0:
        _asked_at[:] = struct.pack("d", time.monotonic())


def is_due() -> bool:
    """Whether the worker was told to stop, and the grace time is over."""
    asked = _read()
    return asked > 0 and time.monotonic() - asked >= GRACE_SECONDS


def check() -> None:
    """Raise Stopped when it is time to release what is under way."""
    if is_due():
        raise Stopped("The worker was told to stop")


def _read() -> float:
    asked: float = struct.unpack("d", _asked_at[:])[0]
    return asked
