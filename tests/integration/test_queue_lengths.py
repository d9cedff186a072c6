"""The lengths of the queues are right whatever else the connection was used for."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

COUNT = """
from producer.broker.messages import QUEUES
from producer.broker.queue import app
from producer.runs.reconciler import queue_lengths
assert app.control.ping(timeout=0.1) == []
assert queue_lengths() == dict.fromkeys(QUEUES, 0), queue_lengths()
"""


def test_asking_for_workers_first_does_not_confuse_the_count(
    run_alone: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    ended = run_alone(COUNT)
    assert ended.returncode == 0, ended.stderr
