"""Forks the processes under test from one that has loaded the libraries, but nothing of ours.

A second of importing for each of some thousands of processes would be most of the matrix's time.
Each line on stdin is an order; the answer is the number of the process, a session of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

LIBRARIES = (
    *("celery.__main__", "celery.bin.celery", "celery.apps.worker", "celery.concurrency.prefork"),
    *("celery.worker.consumer", "celery.backends.redis", "celery.app.control", "celery.app.amqp"),
    *("kombu.transport.redis", "sqlalchemy.dialects.postgresql", "psycopg2", "redis", "psutil"),
    *("pydantic_settings", "alembic.command", "alembic.config", "rich.progress", "structlog"),
    *("click", "logging.config", "multiprocessing", "concurrent.futures"),
)


class Nursery:
    """The forking process; `start` may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.nursery"],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def start(self, command: list[str], environment: dict[str, str], log: Path) -> int:
        """Run `celery …` or `producer …`; returns the number of the process."""
        order = {"command": command, "environment": environment, "log": str(log)}
        with self._lock:
            assert self._process.stdin and self._process.stdout
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())

    def close(self) -> None:
        """End it and everything that it started."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def main() -> None:
    """Serve orders until stdin ends, then kill what is left."""
    for name in LIBRARIES:
        import_module(name)
    # The kernel collects what has ended, so that its number vanishes at once.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    children = []
    for line in sys.stdin.buffer:
        pid = os.fork()
        if pid == 0:
            become(json.loads(line))
        children.append(pid)
        print(pid, flush=True)
    for pid in children:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def become(order: dict[str, Any]) -> None:
    """Turn this process into the command; does not return."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    with open(os.devnull) as nothing, open(order["log"], "ab") as log:
        os.dup2(nothing.fileno(), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.argv = order["command"]
    if sys.argv[0] == "celery":
        from celery.__main__ import main as run
    else:
        from tests.faults import points

        points.before_the_product()
        from producer.cli import main as run
    run()
    sys.exit(0)


if __name__ == "__main__":
    main()
