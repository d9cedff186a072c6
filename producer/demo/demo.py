"""The demonstration: a generated school, embedded servers, two workers, Flower, one run."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import redis
from rich.console import Console
from sqlalchemy import text

from models.errors import MigrationError, Misconfigured
from models.postgres import database
from models.reports.run import RunReport
from models.settings import load
from producer import alive, embedded
from producer.demo import sample, shapes
from producer.reports import terminal

_ADDRESSES = ("DATABASE_URL", "REDIS_URL", "CELERY_BROKER_URL", "CELERY_RESULT_BACKEND")
_START_SECONDS, _STOP_SECONDS, _SILENT_SECONDS = 60, 20, 4


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
    with _alone(home):
        return _run(users, shape, home, console, results)


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Hold the folder: a second demonstration would drop the database of the first."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "demo.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Misconfigured(
                f"Another demonstration is running in {home}",
                hint="Wait for its end, or set MIGRATION_HOME to another folder.",
            ) from None
        yield


def _run(
    users: int, shape: str | None, home: Path, console: Console, results: Console
) -> RunReport:
    started = time.monotonic()
    try:
        servers = _fresh_servers(home, console)
        engine = database.create(servers.database_url)
        school = f"Generating a school of {users:,} users, some of them with bad data"
        with _saying(console, school), engine.begin() as connection:
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
        with _saying(console, "Stopping PostgreSQL and Valkey"):
            embedded.stop(home)
    console.print(f"\nDone in {time.monotonic() - started:.0f} s.")
    _say_next(home, report, shape, console)
    return found


def _say_next(home: Path, report: Path, shape: str | None, console: Console) -> None:
    """The commands that show what is left, to be typed as they stand."""
    variables = {"MIGRATION_HOME": os.path.relpath(home)}
    if shape:
        variables["MIGRATION_MAPPING"] = shape
    given = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    producer = "producer" if shutil.which("producer") else os.path.relpath(sys.argv[0])
    celery = (
        "celery" if shutil.which("celery") else os.path.relpath(Path(sys.executable)) + " -m celery"
    )
    for what, where in (
        ("the report", shlex.quote(os.path.relpath(report))),
        ("the workers' logs", shlex.quote(os.path.relpath(home / "logs"))),
        ("first, for the commands below", f"export {given}"),
        ("the console in a browser", f"{producer} serve"),
        ("the run", f"{producer} status"),
        ("the quarantined rows", f"{producer} quarantine"),
        ("a worker, before you retry", f"{celery} -A worker worker"),
        ("when you are done", f"{producer} servers stop"),
    ):
        console.print(f"  {what:<30} {where}", markup=False, soft_wrap=True)


def _fresh_servers(home: Path, console: Console) -> embedded.Servers:
    doing = "Starting" if embedded.exist(home) else "Creating and starting"
    with _saying(console, f"{doing} PostgreSQL and Valkey under {os.path.relpath(home)}"):
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
    worker = ["worker", "--concurrency=1", "--loglevel=INFO"]
    processes = {
        "worker-1": [*worker, "--hostname=worker-1@%h"],
        "worker-2": [*worker, "--hostname=worker-2@%h"],
        "flower": ["flower", "--address=127.0.0.1", f"--port={port}"],
    }
    # Before a worker's main loop runs, waiting would warn that no worker is there.
    is_there = alive.file_in(home)
    is_there.unlink(missing_ok=True)
    with _celery(home, processes, console):
        engine, settings = connect.engine(), connect.settings().base
        starting = f"Starting two workers, and Flower until the end: http://127.0.0.1:{port}"
        with _saying(console, starting):
            schema_step.upgrade(engine, settings)
            _wait_for_worker(is_there, console)
            run_id, _ = advance.open_run(engine, settings)
            advance.begin(engine, settings, run_id)
        # A terminal has the live view.
        running = nullcontext() if console.is_terminal else _saying(console, "Migrating")
        with running:
            found = wait.until_over(engine, settings, run_id, console)
        with _saying(console, "Writing the report"):
            report = html.write(engine, settings, run_id, None)
        engine.dispose()
    if not (console.is_terminal and results.is_terminal):
        # A terminal still shows the live view.
        terminal.stages(results, found)
    terminal.summary(results, found)
    return found, report


def _wait_for_worker(is_there: Path, console: Console) -> None:
    """Wait until a worker is there, but not for ever: the waiting command says what is missing."""
    end = time.monotonic() + _START_SECONDS
    while not is_there.exists():
        if time.monotonic() > end:
            console.print(f"  No worker in {_START_SECONDS} s")
            return
        time.sleep(0.1)


@contextmanager
def _celery(home: Path, processes: dict[str, list[str]], console: Console) -> Iterator[None]:
    """Celery processes for the time of the block; each gets a SIGTERM, then a SIGKILL."""
    logs = home / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    started: list[subprocess.Popen[bytes]] = []
    try:
        for name, arguments in processes.items():
            with (logs / f"{name}.log").open("wb") as out:
                command = [sys.executable, "-m", "celery", "-A", "worker", *arguments]
                started.append(
                    subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
                )
        yield
    finally:
        with _saying(console, "Stopping the workers and Flower"):
            for process in started:
                process.terminate()
            for process in started:
                try:
                    process.wait(_STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


@contextmanager
def _saying(console: Console, what: str) -> Iterator[None]:
    """Say what is done in the block, and how long it has been at it, so that it is never silent."""
    console.print(what, markup=False, soft_wrap=True)
    started, is_over = time.monotonic(), threading.Event()

    def repeat() -> None:
        while not is_over.wait(_SILENT_SECONDS):
            console.print(f"  {time.monotonic() - started:.0f} s so far")

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
