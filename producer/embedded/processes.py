"""The embedded servers as processes: the user they run as, how they are found, and their end.

Comes before everything else in this folder: `directories` asks it whose the files are.
"""

from __future__ import annotations

import os
import pwd
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from models.errors import Misconfigured

PATIENCE_SECONDS = 300.0


@dataclass(frozen=True)
class Owner:
    """The user whom the servers run as and whose their files are; never root."""

    uid: int
    gid: int

    @property
    def is_somebody_else(self) -> bool:
        """True when root acts for that user."""
        return self.uid != os.geteuid()

    def has_name(self) -> bool:
        """True when the machine's user database knows this user, as many containers do not."""
        try:
            return bool(pwd.getpwuid(self.uid))
        except KeyError:
            return False

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a program as this user and wait for it; what it starts may outlive the caller.

        Raises OSError when the user cannot reach the program.
        """
        identity: dict[str, Any] = {}
        if self.is_somebody_else:
            identity = {"user": self.uid, "group": self.gid, "extra_groups": []}
        return subprocess.run(
            [os.fspath(part) for part in command],
            # The caller's folder may be closed to the owner, and must not stay busy afterwards.
            cwd="/",
            # The caller's PG* and LC_* variables would reach the cluster's configuration.
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            umask=0o077,
            # Ctrl-C for the command must not end a server that others use.
            start_new_session=True,
            check=False,
            **identity,
        )

    def can_run(self, program: Path) -> bool:
        """True when `program --version` works for this user, libraries included."""
        try:
            return self.run(program, "--version").returncode == 0
        except OSError:
            return False

    def can_enter(self, folder: Path) -> bool:
        """True when this user can reach files in `folder` by its path."""
        if not self.is_somebody_else:
            return os.access(folder, os.X_OK)
        return self.run("/bin/sh", "-c", 'cd -- "$0"', folder).returncode == 0


def owner_of(cluster: Path) -> Owner:
    """Who runs the servers of the data folder `cluster`, which need not exist yet.

    That is the caller. Root stands in for the owner of an existing folder, else for `nobody`,
    because PostgreSQL refuses to run as root. Raises Misconfigured where neither is possible.
    """
    if os.geteuid() != 0:
        return Owner(os.geteuid(), os.getegid())
    try:
        found = cluster.stat()
        if found.st_uid != 0:
            return Owner(found.st_uid, found.st_gid)
    except FileNotFoundError:
        pass
    try:
        entry = pwd.getpwnam("nobody")
        owner = Owner(entry.pw_uid, entry.pw_gid)
        owner.run("/bin/sh", "-c", ":")
    except (KeyError, OSError) as failure:
        raise Misconfigured(
            f"The embedded PostgreSQL cannot run as root, nor as the user nobody: {failure}",
            hint="Run the command as an ordinary user, or set DATABASE_URL and REDIS_URL.",
        ) from None
    return owner


def stop_servers(tag: str, *names: str) -> bool:
    """Stop every server called one of `names` whose title shows `tag`; True if there was one.

    Ends their sessions and returns when all are down. Also ends what a killed PostgreSQL left
    running, and servers whose data were deleted under them.
    """
    found = find_servers(tag, *names)
    # A PostgreSQL's children are ended by their parent: SIGINT means something else to each.
    end(parents_among(found), signal.SIGINT, patience=60)
    end(found, signal.SIGQUIT, patience=10)
    return bool(found)


def find_servers(tag: str, *names: str) -> list[psutil.Process]:
    """Every living process called one of `names`, children included, whose title shows `tag`."""
    return [
        process
        for process in psutil.process_iter()
        if any(is_server(process, name, tag) for name in names)
    ]


def parents_among(found: list[psutil.Process]) -> list[psutil.Process]:
    """Those of `found` that are neither another one's child nor a dead PostgreSQL's orphan.

    A child shows its parent's title until it has set its own.
    """
    pids = {process.pid for process in found}
    parents = []
    for process in found:
        with suppress(psutil.NoSuchProcess):
            if process.ppid() not in pids and not _title(process).startswith("postgres: "):
                parents.append(process)
    return parents


def find_server(pid: int, name: str, tag: str) -> psutil.Process | None:
    """The process `pid`, if it is alive and is the server `name` whose title shows `tag`.

    A number from an old pid file may meanwhile stand for any other process.
    """
    try:
        process = psutil.Process(pid)
    except (psutil.NoSuchProcess, ValueError):
        return None
    return process if is_server(process, name, tag) else None


def is_server(process: psutil.Process, name: str, tag: str) -> bool:
    """True when the process lives, is called `name` and shows `tag` in its title.

    Names and titles can be read without the privilege that /proc/PID/cwd and exe need, and
    that root lacks in most containers. Anybody can choose a title, so it must be of our user.
    """
    try:
        return (
            process.name() == name
            and os.geteuid() in (0, process.uids().real)
            and tag in _title(process)
            and not is_gone(process)
        )
    except psutil.Error:
        return False


def is_gone(process: psutil.Process) -> bool:
    """True once the process has ended, even where nobody collects its exit status."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def end(found: list[psutil.Process], how: signal.Signals, *, patience: float) -> None:
    """Signal the processes and wait until all are gone; kills those left after `patience` s."""
    remaining = [process for process in found if not is_gone(process)]
    for sign in (how, signal.SIGKILL):
        for process in remaining:
            try:
                process.send_signal(sign)
            except psutil.NoSuchProcess:
                continue
        until(lambda: all(map(is_gone, found)), patience)
        remaining = [process for process in found if not is_gone(process)]


def until(condition: Callable[[], bool], patience: float) -> bool:
    """Wait until `condition` holds, `patience` seconds at most; returns whether it does."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def ask(path: Path, question: bytes) -> bytes | None:
    """What the server at the Unix socket says to `question`, b"" if it keeps silent for a while.

    None when nobody listens there. An empty question only sees whether somebody does.
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        try:
            client.connect(os.fspath(path))
        except OSError:
            return None
        try:
            client.sendall(question)
            return client.recv(1024) if question else b""
        except OSError:
            return b""


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a server's log, for an error's hint."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
