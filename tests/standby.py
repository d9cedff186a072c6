"""A standby that streams from the session's own PostgreSQL, and can stand still on demand."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine, text

from models.postgres import database as databases
from producer.embedded import directories
from producer.embedded.programs import postgres_bin_dir, reachable
from tests.wait import until

PORT = 5433


@contextmanager
def standby(home: Path) -> Iterator[Engine]:
    """A standby of the cluster under `home`, for the time of the block; it has caught up first."""
    place = directories.find(home)
    assert place is not None
    programs = reachable(postgres_bin_dir() / "postgres", place).parent
    data = place.postgres / "standby"
    options = {
        "unix_socket_directories": str(place.sockets),
        "port": str(PORT),
        "listen_addresses": "",
        "cluster_name": place.tag,
        # A query on the standby never holds the replay up.
        "max_standby_streaming_delay": "0",
    }
    _run(
        place, programs / "pg_basebackup", "--write-recovery-conf", "--checkpoint=fast",
        f"--pgdata={data}", f"--host={place.sockets}", "--username=postgres",
    )  # fmt: skip
    try:
        _run(
            place, programs / "pg_ctl", "start", f"--pgdata={data}", f"--log={data}.log", "--wait",
            f"--options={shlex.join(f'-c{name}={value}' for name, value in options.items())}",
        )  # fmt: skip
        engine = databases.create(
            f"postgresql://postgres@/postgres?host={place.sockets}&port={PORT}"
        )
        try:
            yield engine
        finally:
            engine.dispose()
            _run(place, programs / "pg_ctl", "stop", f"--pgdata={data}", "--mode=immediate")
    finally:
        shutil.rmtree(data, ignore_errors=True)


def say(engine: Engine, statement: str) -> None:
    """Run one statement on the standby."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(statement))


def is_streaming(primary: Engine) -> bool:
    """Whether the standby follows, and has replayed all there is."""
    query = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
    with primary.connect() as connection:
        return bool(connection.scalar(text(query)))


def wait_until_streaming(primary: Engine) -> None:
    """Wait until the standby follows the primary."""
    until(lambda: is_streaming(primary), "the standby does not follow")


def _run(place: directories.Place, program: Path, *arguments: str) -> None:
    ended = place.owner.run(program, *arguments)
    assert ended.returncode == 0, ended.stderr
