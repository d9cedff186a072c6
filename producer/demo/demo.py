"""The demonstration: a generated school, embedded servers, two workers, Flower, one run."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from rich.console import Console
from sqlalchemy import text

from models.errors import MigrationError
from models.postgres import database
from models.reports.run import RunReport
from models.settings import load
from producer import embedded
from producer.demo import sample, shapes
from producer.reports import terminal

_ADDRESSES = ("DATABASE_URL", "REDIS_URL", "CELERY_BROKER_URL", "CELERY_RESULT_BACKEND")
_STOP_SECONDS = 20


class Interrupted(MigrationError):
    """Ctrl-C: nothing of the demonstration runs any longer."""

    kind = "interrupted"
    exit_status = 130


def run(users: int, shape: str | None, console: Console, results: Console) -> RunReport:
    """Migrate a school of `users` generated users, from nothing to the report.

    `shape` is one of `producer.demo.shapes`; the legacy tables of the guide without one.

    Works in a home of its own, so that no address of the environment and no other embedded
    database is ever touched; what an earlier demonstration left there goes.
    """
    home = load().home.absolute() / "demo"
    for variable in (*_ADDRESSES, "MIGRATION_MAPPING"):
        os.environ.pop(variable, None)
    os.environ["MIGRATION_HOME"] = str(home)
    if shape:
        os.environ["MIGRATION_MAPPING"] = shape
    started = time.monotonic()
    try:
        servers = _fresh_servers(home, console)
        console.print(f"Generating a school of {users:,} users, some of them with bad data")
        engine = database.create(servers.database_url)
        with engine.begin() as connection:
            sample.load(connection, users)
            if shape:
                connection.exec_driver_sql(shapes.SCRIPTS[shape])
        engine.dispose()
        found, report = _migrate(home, console, results)
    except KeyboardInterrupt:
        raise Interrupted(
            "The demonstration was stopped, with its workers and servers",
            hint="Start it again from nothing: producer demo",
        ) from None
    finally:
        embedded.stop(home)
    console.print(f"\nDone in {time.monotonic() - started:.0f} s. Where to look next:")
    shown = os.path.relpath(home)
    variables = f"MIGRATION_HOME={shown}" + (f" MIGRATION_MAPPING={shape}" if shape else "")
    producer = "producer" if shutil.which("producer") else os.path.relpath(sys.argv[0])
    for what, where in (
        ("the report", f"{os.path.relpath(report)}"),
        ("the console in a browser", f"{variables} {producer} serve"),
        ("the quarantined rows", f"{variables} {producer} quarantine"),
        ("the ledger and the tables", f"{variables} {producer} status"),
        ("the workers' logs", f"{os.path.relpath(home / 'logs')}"),
        ("when you are done", f"{variables} {producer} servers stop"),
    ):
        console.print(f"  {what:<26} {where}", highlight=False, soft_wrap=True)
    return found


def _fresh_servers(home: Path, console: Console) -> embedded.Servers:
    console.print(f"Starting PostgreSQL and Valkey under {os.path.relpath(home)}")
    servers = embedded.start(home)
    admin = database.create(servers.database_url.replace("/dashboard?", "/postgres?"))
    with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("DROP DATABASE IF EXISTS dashboard WITH (FORCE)"))
        connection.execute(text("CREATE DATABASE dashboard"))
    admin.dispose()
    client = redis.Redis.from_url(servers.redis_url)
    client.flushall()
    client.close()
    return servers


def _migrate(home: Path, console: Console, results: Console) -> tuple[RunReport, Path]:
    """The run and the file of its report."""
    # Imported here: these modules read the addresses that `run` has just settled.
    from producer import connect
    from producer.reports import html
    from producer.runs import advance, wait
    from producer.schema import upgrade as schema_step

    port = _free_port()
    flower = ["flower", "--address=127.0.0.1", f"--port={port}"]
    worker = ["worker", "--concurrency=1", "--loglevel=INFO"]
    with (
        _celery(home, "worker-1", [*worker, "--hostname=worker-1@%h"]),
        _celery(home, "worker-2", [*worker, "--hostname=worker-2@%h"]),
        _celery(home, "flower", flower),
    ):
        console.print(f"Two workers are starting; Flower shows them at http://127.0.0.1:{port}")
        engine, settings = connect.engine(), connect.settings().base
        schema_step.upgrade(engine, settings)
        run_id, _ = advance.open_run(engine, settings)
        advance.begin(engine, settings, run_id)
        found = wait.until_over(engine, settings, run_id, console)
        report = html.write(engine, settings, run_id, None)
        engine.dispose()
    terminal.stages(results, found)
    terminal.summary(results, found)
    return found, report


@contextmanager
def _celery(home: Path, name: str, arguments: list[str]) -> Iterator[None]:
    """A Celery process for the time of the block; it gets a SIGTERM, then a SIGKILL."""
    log = home / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "worker", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
