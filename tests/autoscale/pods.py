"""Worker processes that begin and end as pods do: SIGTERM, a time of grace, SIGKILL."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.acceptance.conftest import kill_group
from tests.autoscale.manifest import Scaled


@dataclass
class Deployment:
    """Keeps as many pods as it is told to; one that ends by itself is replaced."""

    of: Scaled
    environment: dict[str, str]
    logs: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    # With the moment at which the grace ends.
    terminating: list[tuple[subprocess.Popen[bytes], float]] = field(default_factory=list)
    started: int = 0
    killed: int = 0

    def reach(self, replicas: int, now: float) -> None:
        """One round: collect what ended, start what lacks, tell what is too many to stop."""
        self.running = [pod for pod in self.running if pod.poll() is None]
        still = []
        for pod, end in self.terminating:
            if pod.poll() is None and now >= end:
                kill_group(pod)
                self.killed += 1
            if pod.poll() is None:
                still.append((pod, end))
        self.terminating = still
        while len(self.running) < replicas:
            self.running.append(self._start())
        while len(self.running) > replicas:
            # Nobody can choose the victim.
            pod = self.running.pop(random.randrange(len(self.running)))
            pod.send_signal(signal.SIGTERM)
            self.terminating.append((pod, now + self.of.grace_seconds))

    def lose_one(self, working: Callable[[], Iterable[int]]) -> bool:
        """A machine is gone, and with it a pod in the middle of a batch; False: none is in one.

        `working` says which processes hold a claim, asked while the pod stands still.
        """
        for pod in self.running:
            os.killpg(pod.pid, signal.SIGSTOP)
            if any(_is_of(process, pod) for process in working()):
                kill_group(pod)
                return True
            os.killpg(pod.pid, signal.SIGCONT)
        return False

    @property
    def is_empty(self) -> bool:
        """Whether there is no pod, not even one that is on its way out."""
        return not self.running and not self.terminating

    def _start(self) -> subprocess.Popen[bytes]:
        self.started += 1
        name = f"{self.of.name}-{self.started}"
        with (self.logs / f"{name}.log").open("wb") as log:
            return start([part.replace("%h", name) for part in self.of.command], self, log)


def _is_of(process: int, pod: subprocess.Popen[bytes]) -> bool:
    try:
        return os.getpgid(process) == pod.pid
    except ProcessLookupError:
        return False


def start(command: list[str], of: Deployment, log: object) -> subprocess.Popen[bytes]:
    """A container's command as a process group of its own, with the programs of this Python."""
    program = Path(sys.executable).parent / command[0]
    return subprocess.Popen(
        [str(program), *command[1:]],
        env=of.environment,
        stdin=subprocess.DEVNULL,
        stdout=log,  # type: ignore[call-overload]
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


@contextmanager
def deployments(
    every: list[Scaled], environment: dict[str, str], logs: Path
) -> Iterator[dict[str, Deployment]]:
    """A deployment each for the time of the block; whatever still runs at its end is killed."""
    logs.mkdir(parents=True, exist_ok=True)
    made = {of.name: Deployment(of, dict(os.environ) | environment, logs) for of in every}
    try:
        yield made
    finally:
        for deployment in made.values():
            for pod in (*deployment.running, *(pod for pod, _ in deployment.terminating)):
                kill_group(pod)
