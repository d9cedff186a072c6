"""Servers, a generated school, workers and the producer, for runs of minutes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import psutil
from sqlalchemy import Engine, text

from models.postgres import database as databases
from models.settings import DEFAULT_GRANTS, parse_grants
from producer import embedded
from producer.demo import sample
from tests import oracle, wait

GRANTS: dict[str, Decimal] = parse_grants(DEFAULT_GRANTS)
ICU = "icu:"


Kind = TypeVar("Kind", bound="Site")


class Site:
    """A PostgreSQL and a Valkey under a folder of their own, and one database after the other."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.servers = embedded.start(home)
        self.name = "dashboard"

    def fresh(self, name: str, template: str | None = None, locale: str = "") -> Engine:
        """An empty database, or a copy of another one; the product works on it from now on.

        An empty one has this locale of the system, or of ICU after `icu:`; else the server's.
        """
        admin = databases.create(self.address("postgres"))
        with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
            of = f" TEMPLATE {template}" if template else _locale(locale)
            connection.execute(
                text(f"CREATE DATABASE {name}{of}"), {"locale": locale.removeprefix(ICU)}
            )
        admin.dispose()
        self.name = name
        return databases.create(self.address(name))

    def address(self, name: str) -> str:
        return self.servers.database_url.replace("/dashboard?", f"/{name}?")

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {
            "DATABASE_URL": self.address(self.name),
            "REDIS_URL": self.servers.redis_url,
            "MIGRATION_HOME": str(self.home / "unused"),
        }

    def worker(self, number: int, app: str = "worker", concurrency: int = 1) -> psutil.Popen:
        """Start a worker: a main process, and so many that do batches."""
        log = (self.home / f"worker-{number}.log").open("ab")
        return psutil.Popen(
            [sys.executable, "-m", "celery", "-A", app, "worker", f"--concurrency={concurrency}",
             "--loglevel=INFO", f"--hostname=w{number}@%h"],
            env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip

    def producer(self, *arguments: str, module: str = "producer.cli") -> psutil.Popen:
        """Start `producer …`."""
        code = f"import sys, {module} as m; sys.argv[0] = 'producer'; m.main()"
        log = (self.home / "producer.log").open("ab")
        return psutil.Popen(
            [sys.executable, "-c", code, *arguments],
            env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
            text=True,
        )  # fmt: skip


def _locale(name: str) -> str:
    # Only template0 has nothing in it that another locale would have sorted differently.
    if not name:
        return ""
    if name.startswith(ICU):
        return " TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE :locale"
    return " TEMPLATE template0 LOCALE_PROVIDER libc LOCALE :locale"


@contextmanager
def open_site(kind: type[Kind] = Site) -> Iterator[Kind]:
    """A site for the time of the block; its servers and data go at the end."""
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        home = Path(folder) / ".migration"
        try:
            yield kind(home)
        finally:
            embedded.erase(home)


@contextmanager
def workers(
    site: Site, count: int, app: str = "worker", concurrency: int = 1
) -> Iterator[list[psutil.Popen]]:
    """So many workers for the time of the block; whoever replaces one puts it into the list."""
    running = [site.worker(number, app, concurrency) for number in range(count)]
    try:
        yield running
    finally:
        for worker in running:
            kill(worker)


def kill(process: psutil.Process) -> None:
    """SIGKILL a process and its children."""
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=10)


def load(engine: Engine, users: int, **options: Any) -> oracle.Snapshot:
    """Fill the database, and read it as it is before any run."""
    with engine.begin() as connection:
        sample.load(connection, users, **options)
    with engine.connect() as connection:
        return oracle.snapshot(connection, oracle.Names())


def verdict(engine: Engine, before: oracle.Snapshot) -> list[str]:
    """What differs from what the rules make of the legacy rows as they stand now."""
    with engine.connect() as connection:
        return oracle.compare_now(connection, before, GRANTS)


def rows(engine: Engine, query: str, **values: Any) -> list[Any]:
    """All rows of a query."""
    with engine.connect() as connection:
        return list(connection.execute(text(query), values))


def finish(producer: psutil.Popen, meanwhile: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Wait for a waiting command; its JSON object, with its exit status and seconds."""
    started = time.monotonic()

    def is_over() -> bool:
        meanwhile()
        return producer.poll() is not None

    wait.comes(is_over, math.inf)
    found: dict[str, Any] = json.loads(producer.stdout.read())
    return found | {"exit_status": producer.returncode, "wall": time.monotonic() - started}
