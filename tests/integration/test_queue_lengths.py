"""The lengths of the queues are right whatever else the connection was used for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# In a process of its own: the application reads the broker's address once.
COUNT = """
from producer.queue import QUEUES, app
from producer.reconciler import queue_lengths
assert app.control.ping(timeout=0.1) == []
assert queue_lengths() == dict.fromkeys(QUEUES, 0), queue_lengths()
"""


def test_asking_for_workers_first_does_not_confuse_the_count(
    redis_url: str, tmp_path: Path
) -> None:
    environment = os.environ | {
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nowhere",
        "REDIS_URL": redis_url,
    }
    ended = subprocess.run(
        [sys.executable, "-c", COUNT],
        env=environment,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
