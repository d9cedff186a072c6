"""Real programs from Debian packages, in front of the session's servers."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psycopg2
import pytest

from producer import embedded
from producer.embedded import directories

# Fixtures are found by their names here.
from tests.acceptance.conftest import product
from tests.system import packages, secured
from tests.system import servers as tls
from tests.wait import until

__all__ = ["pooler", "product"]

PORT, POOL_SIZE = 6432, 4


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name each test that could not run, and why."""
    skipped = terminalreporter.getreports("skipped")
    if skipped:
        terminalreporter.section("what could not run")
    for report in skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        terminalreporter.line(f"{report.nodeid}: {reason}")


@dataclass(frozen=True)
class Pooler:
    """Where PgBouncer answers, and how to ask it."""

    sockets: Path

    def address(self, database_url: str) -> str:
        """The address of the same database through the pooler."""
        return f"{database_url}&port={PORT}"

    def servers(self) -> list[tuple[str, str, str]]:
        """Its connections to PostgreSQL: user, database, state."""
        address = f"postgresql://postgres@/pgbouncer?host={self.sockets}&port={PORT}"
        with closing(psycopg2.connect(address)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SHOW SERVERS")
                return [(row[1], row[2], row[3]) for row in cursor.fetchall()]


@pytest.fixture(scope="session")
def tls_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[secured.Servers]:
    """A PostgreSQL and a Redis that speak TLS only."""
    with tls.place_of(tmp_path_factory.mktemp("tls") / ".migration") as place:
        certificates = tls.certify(place)
        with (
            tls.postgres(place, certificates) as postgres,
            tls.redis_server(place, certificates) as redis,
        ):
            found = secured.Servers(postgres, redis, place.sockets)
            found.execute("CREATE ROLE {}", secured.OWNER)
            yield found


@pytest.fixture
def site(tls_servers: secured.Servers, tmp_path: Path) -> Iterator[secured.Site]:
    """A school behind TLS, whose roles are not made yet."""
    with secured.site(tls_servers, tmp_path, users=2_000) as found:
        yield found


@pytest.fixture
def pooler(servers: embedded.Servers, _environment: Path) -> Iterator[Pooler]:
    """A PgBouncer in transaction mode, with fewer connections than the product opens."""
    program = packages.command("pgbouncer")
    place = directories.find(_environment)
    assert place is not None
    folder = place.root / "pooler"
    folder.mkdir()
    os.chown(folder, place.owner.uid, place.owner.gid)
    (folder / "users.txt").write_text('"postgres" ""\n')
    (folder / "pgbouncer.ini").write_text(
        f"""[databases]
* = host={place.sockets}
[pgbouncer]
unix_socket_dir = {place.sockets}
listen_port = {PORT}
auth_type = trust
auth_file = {folder}/users.txt
admin_users = postgres
pool_mode = transaction
default_pool_size = {POOL_SIZE}
server_check_query = ;
logfile = {folder}/log
pidfile = {folder}/pid
"""
    )
    for file in folder.iterdir():
        os.chown(file, place.owner.uid, place.owner.gid)
    started = place.owner.run(*program, "-d", folder / "pgbouncer.ini")
    assert started.returncode == 0, started.stderr
    try:
        until((place.sockets / f".s.PGSQL.{PORT}").exists, "pgbouncer does not listen")
        yield Pooler(place.sockets)
    finally:
        os.kill(int((folder / "pid").read_text()), signal.SIGTERM)
        print((folder / "log").read_text()[-3000:])
        shutil.rmtree(folder, ignore_errors=True)
