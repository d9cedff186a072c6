"""Sends what is due, in a thread of its own: a slow or failing receiver never holds a run."""

from __future__ import annotations

import io
import logging
import os
import shlex
import signal
import subprocess
import threading
from contextlib import suppress
from typing import Any

from rich.console import Console
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from models.errors import Misconfigured
from models.ledger.tables import COMPLETED_STATES
from models.postgres import database
from models.postgres.database import transaction
from models.settings import Settings
from producer.logs import Log
from producer.notices import due
from producer.reports import status, terminal

# For one message; well below the minute after which another process may claim it.
SEND_SECONDS = 20
WIDTH = 100
log = Log("migration.notices")
_sender = threading.Lock()


def require(settings: Settings) -> None:
    """Raise Misconfigured where messages are asked for, and cannot be sent."""
    if settings.notify_url:
        _apprise(settings)


def deliver(engine: Engine, settings: Settings) -> threading.Thread:
    """Send what is due, beside what this process does; returns the thread that sends."""
    thread = threading.Thread(target=_deliver, args=(engine, settings), daemon=True, name="notices")
    thread.start()
    return thread


def _deliver(engine: Engine, settings: Settings) -> None:
    # The thread of an earlier round may wait for a slow receiver: it takes what is due, too.
    if not _sender.acquire(blocking=False):
        return
    try:
        while notice := _claim(engine, settings):
            fault = _send(engine, settings, notice)
            if fault:
                log.warning("notice not sent", run=notice.run_id, channel=notice.channel, why=fault)
                continue
            with transaction(engine) as connection:
                due.close(connection, notice)
    except DBAPIError as failure:
        log.warning("no notices for now", why=database.classify(failure).message)
    finally:
        _sender.release()


def _claim(engine: Engine, settings: Settings) -> due.Notice | None:
    with transaction(engine) as connection:
        return due.claim(connection, settings)


def _send(engine: Engine, settings: Settings, notice: due.Notice) -> str:
    """Send one message; returns what is wrong, without anything of address or command."""
    title, body = message(engine, notice)
    if notice.channel == due.COMMAND:
        return _run(settings.notify_command, f"{title}\n{body}")
    found: list[bool] = []
    is_good = notice.state in (*COMPLETED_STATES, "rolled_back")

    def post() -> None:
        kind = "success" if is_good else "warning"
        found.append(bool(_apprise(settings).notify(body=body, title=title, notify_type=kind)))

    # Its own limits are for each read and write: a receiver that answers in drops has no end.
    thread = threading.Thread(target=post, daemon=True, name="notice")
    thread.start()
    thread.join(SEND_SECONDS)
    if thread.is_alive():
        return f"no answer in {SEND_SECONDS} s"
    return "" if found == [True] else "the receiver cannot be reached, or refused it"


def message(engine: Engine, notice: due.Notice) -> tuple[str, str]:
    """Title and text: what happened, and the run as `producer status` shows it."""
    what = f"is {notice.state}" if notice.kind == "run" else "needs you"
    said = io.StringIO()
    console = Console(file=said, width=WIDTH, color_system=None)
    if notice.note:
        console.print(notice.note, markup=False)
    terminal.summary(console, status.read(engine, notice.run_id))
    return f"Run {notice.run_id} {what} on {database.name_of(engine)}", said.getvalue()


def _run(command: str, text: str) -> str:
    try:
        process = subprocess.Popen(
            shlex.split(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
    except OSError as failure:
        return f"MIGRATION_NOTIFY_COMMAND cannot be started: {failure.strerror}"
    try:
        process.communicate(text, timeout=SEND_SECONDS)
    except subprocess.TimeoutExpired:
        # What it started ends with it, if this process may end it.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()
        return f"MIGRATION_NOTIFY_COMMAND did not end in {SEND_SECONDS} s"
    status = process.returncode
    return f"MIGRATION_NOTIFY_COMMAND ended with {status}" if status else ""


def _apprise(settings: Settings) -> Any:
    # Both would log addresses, which hold tokens.
    logging.getLogger("apprise").disabled = True
    logging.getLogger("urllib3").setLevel(logging.CRITICAL)
    try:
        import apprise
    except ModuleNotFoundError:
        raise Misconfigured(
            "MIGRATION_NOTIFY_URL: apprise is not installed",
            hint="Install it: pip install 'dashboard-migration[notify]', or unset the variable.",
        ) from None
    found = apprise.Apprise()
    assert settings.notify_url
    if not found.add(settings.notify_url.get_secret_value()):
        raise Misconfigured(
            "MIGRATION_NOTIFY_URL: no address that apprise knows",
            hint="A webhook that takes JSON is jsons://host/path. Others: apprise's manual.",
        )
    return found
