"""One repetition's site: a database, a Redis, the product's processes, and ways to hurt them."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import redis
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from models.ledger.tables import OPEN_STATES
from models.postgres import database as databases
from tests import wait
from tests.faults.world import Lane, NotInjected, Stopped
from tests.oracle import Expectation, Snapshot

BATCH_SIZE, CHILDREN = 30, 2
ROOT = Path(__file__).parents[2]
QUEUES = "migration:*:migration.*"
PATIENCE_SECONDS = 60.0


@dataclass
class Worker:
    """A worker of the product; `is_wanted` while somebody starts it again when it is gone."""

    name: str
    options: dict[str, str]
    pid: int = 0
    is_wanted: bool = True

    def is_alive(self) -> bool:
        return bool(self.pid) and psutil.pid_exists(self.pid)

    def signal(self, how: signal.Signals, *, group: bool = False) -> None:
        # Number 0 would be this process's own group.
        if self.pid:
            with suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(self.pid, how)


@dataclass
class Site:
    """A fresh legacy database, an empty Redis, and the product at work on them.

    `runs` is how many are to be there at the end.
    """

    lane: Lane
    folder: Path
    repetition: int
    is_short: bool = False
    restarts: int = 0
    runs: int = 1
    workers: list[Worker] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    proofs: list[tuple[str, Callable[[], object]]] = field(default_factory=list)
    cleanup: ExitStack = field(default_factory=ExitStack)
    engine: Engine = field(init=False)
    redis: redis.Redis = field(init=False)
    before: Snapshot = field(init=False)
    expectation: Expectation = field(init=False)

    @property
    def prefix(self) -> str:
        """The prefix of the ledger's keys in Redis."""
        return f"migration:{self.scalar('SELECT id FROM migration.ledger')}:"

    def __enter__(self) -> Site:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.lane.start()
        self.before, self.expectation = self.lane.before, self.lane.expectation
        with self.lane.admin() as connection:
            connection.execute(text("DROP DATABASE IF EXISTS site WITH (FORCE)"))
            connection.execute(text("CREATE DATABASE site TEMPLATE legacy"))
        self.engine = databases.create(self.lane.address("site"), application="harness")
        self.redis = redis.Redis.from_url(self.lane.servers.redis_url, decode_responses=True)
        self.redis.config_set("maxmemory", "0")
        self.redis.flushall()
        clean = ("MIGRATION_", "CELERY_", "PG", "DATABASE_URL", "REDIS_URL", "FAULT_", "PYTEST")
        self.environment |= {k: v for k, v in os.environ.items() if not k.startswith(clean)} | {
            "DATABASE_URL": self.lane.address("site"),
            "REDIS_URL": self.lane.servers.redis_url,
            "MIGRATION_HOME": str(self.folder),
            "MIGRATION_BATCH_SIZE": str(BATCH_SIZE),
        }
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.is_wanted = False
            worker.signal(signal.SIGKILL, group=True)
        for pid in self._left():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ProcessLookupError, OSError, ValueError):
            os.kill(self.lane.valkey(), signal.SIGCONT)
        self.engine.dispose()
        self.cleanup.close()
        self.redis.close()

    def _left(self) -> list[int]:
        """What is left of the processes started here: children outlive a worker that was killed."""
        file = self.folder / "pids"
        groups = {int(line) for line in file.read_text().split()} if file.exists() else set()
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, ProcessLookupError):
                if os.getpgid(process.pid) in groups:
                    found.append(process.pid)
        return found

    def _launch(self, command: list[str], log: str, environment: dict[str, str]) -> int:
        first = "" if command[0] == "celery" else "tests.faults.points:before_the_product"
        child = self.lane.nursery.start(
            command,
            self.environment | environment,
            ROOT,
            log=self.folder / f"{log}.log",
            is_session=True,
            first=first,
        )
        with (self.folder / "pids").open("a") as file:
            file.write(f"{child.pid}\n")
        return child.pid

    def arm(
        self,
        point: str,
        act: str = "tell",
        *,
        skip: int = 0,
        times: int = 1,
        same_batch: bool = False,
    ) -> dict[str, str]:
        """Lay a ticket; returns the setting of the processes that may use it."""
        path = self.folder / "tickets"
        ticket = {"point": point, "act": act, "skip": skip, "left": times, "batch": None}
        path.write_text(json.dumps([ticket | {"same_batch": same_batch}]))
        return {"FAULT_TICKETS": str(path)}

    def happened(self) -> list[dict[str, Any]]:
        """What the tickets have done so far."""
        file = self.folder / "happened"
        lines = file.read_text().splitlines() if file.exists() else []
        return [json.loads(line) for line in lines]

    def struck(self, times: int = 1) -> float:
        """Wait until the tickets were used; returns when the last of them was."""
        self.until(lambda: len([h for h in self.happened() if "time" in h]) >= times, "the point")
        return float([h for h in self.happened() if "time" in h][times - 1]["time"])

    def work(self, number: int = 1, **environment: str) -> None:
        """Start workers, each of which is started again whenever it is gone."""
        for _ in range(number):
            worker = Worker(f"w{len(self.workers)}", environment)
            self.workers.append(worker)
            self._start(worker)

    def _start(self, worker: Worker) -> None:
        command = ["celery", "-A", "tests.faults.app", "worker", f"--concurrency={CHILDREN}"]
        worker.pid = self._launch(
            [*command, f"--hostname={worker.name}@%h"], worker.name, worker.options
        )

    def enqueue(self, *options: str, wait: bool = True, **environment: str) -> int:
        """`producer enqueue-all`, to its end unless told otherwise; the number of its process."""
        pid = self._launch(["producer", "enqueue-all", "--json", *options], "producer", environment)
        if wait:
            self.until(lambda: not psutil.pid_exists(pid), "the end of producer enqueue-all")
        return pid

    def look_after(self) -> None:
        """Start again what is gone, as whatever runs the workers in production does."""
        for worker in self.workers:
            if worker.is_wanted and not worker.is_alive():
                self.restarts += 1
                self._start(worker)

    def dump(self) -> None:
        """Let the workers write into their logs what each of their threads is doing."""
        for worker in self.workers:
            worker.signal(signal.SIGUSR2)

    def until(
        self, condition: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS
    ) -> None:
        """Wait for the condition; raises NotInjected when it does not come to hold."""
        if not self.comes(condition, seconds):
            raise NotInjected(f"waited {seconds:.0f} s in vain for {what}")

    def comes(self, condition: Callable[[], object], seconds: float) -> bool:
        """Whether the condition comes to hold within that time; servers may be away meanwhile."""

        def holds() -> bool:
            if self.lane.is_stopping.is_set():
                raise Stopped
            self.look_after()
            with suppress(DBAPIError, redis.RedisError):
                return bool(condition())
            return False

        return wait.comes(holds, seconds)

    def hold(self, seconds: float) -> None:
        """Let the fault last."""
        self.comes(lambda: False, seconds)

    def scalar(self, query: str, **values: Any) -> Any:
        """The first value of a query of its own transaction."""
        with self.engine.begin() as connection:
            return connection.scalar(text(query), values)

    def is_over(self) -> bool:
        """Whether no run is open."""
        return not self.scalar(
            "SELECT count(*) FROM migration.runs WHERE state = ANY (:open)", open=list(OPEN_STATES)
        )

    def change(self, *statements: str, **values: Any) -> None:
        """Run statements in one transaction."""
        with self.engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement), values)

    def must(self, what: str, condition: Callable[[], object]) -> None:
        """Say what must hold at the end for the fault to have happened."""
        self.proofs.append((what, condition))
