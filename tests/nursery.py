"""Forks the processes under test from one that has loaded the libraries already.

A second of importing for each of some thousands of processes would be most of the tests' time.
What is forked is a process of its own: its environment, folder, session, output and end are those
of the command that it becomes. An order is a line of JSON with its length before it, and brings
the descriptors of stdout, stderr and of the pipe that tells the exit status.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from typing import IO, Any

# Nothing of `producer` and `worker`: some of that reads the settings when it is imported.
LIBRARIES = (
    *("celery.__main__", "celery.bin.celery", "celery.apps.worker", "celery.concurrency.prefork"),
    *("celery.worker.consumer", "celery.backends.redis", "celery.app.control", "celery.app.amqp"),
    *("kombu.transport.redis", "sqlalchemy.dialects.postgresql", "psycopg2", "redis", "psutil"),
    *("pydantic", "alembic.command", "alembic.config", "rich.progress", "structlog"),
    *("click", "logging.config", "multiprocessing", "concurrent.futures", "jinja2"),
)
_STREAMS = 2


@dataclass
class Child:
    """A forked process, with what the tests use of `subprocess.Popen`."""

    pid: int
    command: list[str]
    stdout: IO[str] | None
    stderr: IO[str] | None
    _ended: int
    returncode: int | None = field(default=None, init=False)

    def poll(self) -> int | None:
        """The exit status once it has ended; negative for the signal that killed it."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; raises `subprocess.TimeoutExpired`."""
        found = self._look(timeout)
        if found is None:
            raise subprocess.TimeoutExpired(self.command, timeout or 0)
        return found

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """The rest of its output, and wait for its end; kills what takes longer."""
        late = threading.Timer(timeout, self.kill) if timeout else None
        with ThreadPoolExecutor(_STREAMS) as pool:
            if late:
                late.start()
            reads = [pool.submit(_rest, stream) for stream in (self.stdout, self.stderr)]
            out, err = (read.result() for read in reads)
        if late:
            late.cancel()
        self.wait(timeout)
        return out, err

    def send_signal(self, which: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, which)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.stdout, self.stderr):
            if stream:
                stream.close()
        self.wait()

    def __del__(self) -> None:
        if self.returncode is None:
            os.close(self._ended)

    def _look(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._ended], [], [], timeout)[0]:
            # A nursery that is gone took its children with it.
            self.returncode = int(os.read(self._ended, 16) or -signal.SIGKILL)
            os.close(self._ended)
        return self.returncode


def _rest(stream: IO[str] | None) -> str:
    if stream is None or stream.closed:
        return ""
    with stream:
        return stream.read()


class Nursery:
    """The forking process; `start` may be called from any thread."""

    def __init__(self, folder: Path, *modules: str) -> None:
        self._lock = threading.Lock()
        self._channel, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.nursery", str(theirs.fileno()), *modules],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def start(
        self,
        command: list[str],
        environment: dict[str, str],
        folder: Path,
        *,
        log: Path | None = None,
        is_session: bool = False,
        first: str = "",
    ) -> Child:
        """Run `celery …` or `producer …`: with pipes, or with both outputs at the log's end.

        `first` names a function to be called in the child before anything of ours is imported.
        """
        order = {"command": command, "environment": environment, "folder": str(folder),
                 "is_session": is_session, "first": first}  # fmt: skip
        ended, status = os.pipe()
        theirs, ours = _log(log) if log else _pipes()
        with self._lock:
            body = json.dumps(order).encode()
            head = len(body).to_bytes(4, "big")
            socket.send_fds(self._channel, [head], [*theirs, status])
            self._channel.sendall(body)
            pid = int.from_bytes(_exactly(self._channel, 4), "big")
        for descriptor in {*theirs, status}:
            os.close(descriptor)
        out, err = (os.fdopen(each) for each in ours) if ours else (None, None)
        return Child(pid, command, out, err, ended)

    def close(self) -> None:
        """End it and everything that it started."""
        self._channel.close()
        self._process.wait()


def _pipes() -> tuple[list[int], list[int]]:
    (out, their_out), (err, their_err) = os.pipe(), os.pipe()
    return [their_out, their_err], [out, err]


def _log(log: Path) -> tuple[list[int], list[int]]:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    return [file, file], []


def _exactly(channel: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        some = channel.recv(count - len(found))
        if not some:
            raise ConnectionError("the other side is gone")
        found += some
    return found


def main() -> None:
    """Serve orders until there is nobody left to give one, then kill what is left."""
    for name in (*LIBRARIES, *sys.argv[2:]):
        import_module(name)
    # Otherwise a child's first collection would copy every page.
    gc.collect()
    gc.freeze()
    started: list[int] = []
    running: dict[int, int] = {}

    def collect(*_: Any) -> None:
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                descriptor = running.pop(ended[0])
                with suppress(BrokenPipeError):
                    os.write(descriptor, str(os.waitstatus_to_exitcode(ended[1])).encode())
                os.close(descriptor)

    signal.signal(signal.SIGCHLD, collect)
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        while True:
            head, descriptors, _, _ = socket.recv_fds(channel, 4, _STREAMS + 1)
            if not head:
                break
            order = json.loads(_exactly(channel, int.from_bytes(head, "big")))
            # A child that ends at once is collected when it is known here.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
            pid = os.fork()
            if pid == 0:
                channel.close()
                become(order, descriptors)
            running[pid] = descriptors[_STREAMS]
            started.append(pid)
            for descriptor in descriptors[:_STREAMS]:
                os.close(descriptor)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            channel.sendall(pid.to_bytes(4, "big"))
    for pid in started:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def become(order: dict[str, Any], descriptors: list[int]) -> None:
    """Turn this process into the command; does not return."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    if order["is_session"]:
        os.setsid()
    os.dup2(descriptors[0], 1)
    os.dup2(descriptors[1], 2)
    os.closerange(3, 256)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    time.tzset()
    sys.argv = order["command"]
    if order["first"]:
        resolve_name(order["first"])()
    run = resolve_name("celery.__main__:main" if sys.argv[0] == "celery" else "producer.cli:main")
    run()
    sys.exit(0)


if __name__ == "__main__":
    main()
