"""The workers' Celery application with injection points: `celery -A tests.faults.app worker`."""

from __future__ import annotations

import faulthandler
import os
import signal
from pathlib import Path

from tests.faults import clocks, points

faulthandler.register(signal.SIGUSR2, all_threads=True)
points.before_the_product()

from worker.app import app  # noqa: E402

points.after_the_product()
if "FAULT_CLOCK" in os.environ:
    clocks.bend(Path(os.environ["FAULT_CLOCK"]))

__all__ = ["app"]
