"""The embedded PostgreSQL: made, started, found and stopped. The caller holds the home's lock."""

from __future__ import annotations

import os
import shlex
import shutil
from contextlib import closing
from pathlib import Path

import psutil
import psycopg2
from psycopg2 import errors, sql

from models.errors import Misconfigured
from producer.embedded.directories import POSTGRES_SOCKET, Place
from producer.embedded.processes import (
    PATIENCE_SECONDS,
    ask,
    find_server,
    is_gone,
    stop_servers,
    tail,
    until,
)
from producer.embedded.programs import reachable

# Everything else stays as PostgreSQL ships it, durability above all.
SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
}


def run_postgres(bin_dir: Path, place: Place) -> None:
    """Start the cluster in `place.postgres` with the programs of `bin_dir`, unless it runs.

    Makes the cluster and the database `dashboard` where they are missing. `bin_dir` may be of any
    version from 13 on, but of one major version for one place. Returns once connections are
    accepted, which after a crash takes as long as the replay; raises Misconfigured with the end
    of the server's log otherwise.
    """
    if not _is_ready(place):
        # Children of a killed one, or one whose home was deleted: it would not start beside them.
        stop_servers(place.tag, "postgres")
        programs = reachable(bin_dir / "postgres", place).parent
        _make_cluster(programs, place)
        _start(programs, place)
    _create_database(place, "dashboard")


def is_running(place: Place) -> bool:
    """True when the cluster's postmaster lives and listens, ready or not."""
    postmaster = _find_postmaster(place)
    return postmaster is not None and ask(place.sockets / POSTGRES_SOCKET, b"") is not None


def _is_ready(place: Place) -> bool:
    """Like `is_running`, once a postmaster that is still starting or stopping has come to rest."""
    postmaster = _find_postmaster(place)
    if postmaster is None:
        return False
    until(lambda: _status(place) == "ready" or is_gone(postmaster), PATIENCE_SECONDS)
    return is_running(place)


def _find_postmaster(place: Place) -> psutil.Process | None:
    pid = "".join(_pid_file(place)[:1])
    return find_server(int(pid), "postgres", place.tag) if pid.isdigit() else None


def _pid_file(place: Place) -> list[str]:
    # https://www.postgresql.org/docs/current/storage-file-layout.html: pid, …, status as the 8th
    try:
        return (place.postgres / "data" / "postmaster.pid").read_text().splitlines()
    except OSError:
        return []


def _status(place: Place) -> str:
    lines = _pid_file(place)
    return lines[7].strip() if len(lines) > 7 else "starting"


def _make_cluster(programs: Path, place: Place) -> None:
    data = place.postgres / "data"
    if data.exists():
        return
    if not place.owner.has_name():
        raise Misconfigured(
            f"User {place.owner.uid} has no name on this machine, and initdb needs one",
            hint="Run the command as a user of /etc/passwd, or set DATABASE_URL and REDIS_URL.",
        )
    # Made under another name, so that an interrupted initdb is not taken for a cluster; and under
    # one of this process: the initdb of one that was killed may still write to its own.
    unfinished = place.postgres / f"unfinished-{os.getpid()}"
    for locale in ("C.UTF-8", "C"):
        for left in place.postgres.glob("unfinished*"):
            shutil.rmtree(left, ignore_errors=True)
        made = place.owner.run(
            programs / "initdb",
            f"--pgdata={unfinished}",
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            f"--locale={locale}",
            "--data-checksums",
        )
        if made.returncode == 0:
            unfinished.rename(data)
            return
    raise _failed("initdb failed", made.stderr)


def _start(programs: Path, place: Place) -> None:
    data = place.postgres / "data"
    _remove_stale_locks(place)
    settings = SETTINGS | {
        "unix_socket_directories": str(place.sockets),
        # Shows in the title of every process of the cluster, which is how they are found.
        "cluster_name": place.tag,
        "wal_compression": "lz4" if _accepts_lz4(programs, place) else "off",
    }
    log = place.postgres / "log"
    started = place.owner.run(
        programs / "pg_ctl",
        "start",
        f"--pgdata={data}",
        f"--log={log}",
        f"--options={shlex.join(f'-c{name}={value}' for name, value in settings.items())}",
        "--wait",
        f"--timeout={PATIENCE_SECONDS:.0f}",
        "--silent",
    )
    if started.returncode != 0:
        raise _failed("The embedded PostgreSQL did not start", tail(log) or started.stderr)


def _remove_stale_locks(place: Place) -> None:
    """Drop the lock files of a dead postmaster where PostgreSQL would take it for a living one.

    That is when its number stands for another process after a reboot, or for a zombie. The
    cluster's own has to stay where its process might be a postmaster: two on one cluster would
    destroy it. The sockets' folder is this home's alone, and its servers have been stopped.
    """
    (place.sockets / f"{POSTGRES_SOCKET}.lock").unlink(missing_ok=True)
    file = place.postgres / "data" / "postmaster.pid"
    try:
        rebooted = file.stat().st_mtime < psutil.boot_time()
        process = psutil.Process(int("".join(_pid_file(place)[:1])))
        if rebooted or process.name() != "postgres" or is_gone(process):
            file.unlink()
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        return


def _accepts_lz4(programs: Path, place: Place) -> bool:
    data = f"-D{place.postgres / 'data'}"
    probe = ("-C", "wal_compression", "-c", "wal_compression=lz4")
    return place.owner.run(programs / "postgres", data, *probe).returncode == 0


def _create_database(place: Place, name: str) -> None:
    try:
        with closing(
            psycopg2.connect(host=str(place.sockets), user="postgres", dbname="postgres")
        ) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SELECT FROM pg_database WHERE datname = %s", (name,))
                if cursor.fetchone() is None:
                    cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    except errors.DuplicateDatabase:
        pass
    except psycopg2.Error as failure:
        reason = f"The embedded PostgreSQL has no database {name}, nor can it be made"
        raise _failed(reason, f"{failure}\n{tail(place.postgres / 'log')}") from None


def _failed(message: str, said: str) -> Misconfigured:
    return Misconfigured(message, hint=f"What it said:\n{said.strip()}")
