"""Real servers for every test that asks: one embedded pair a session, clean parts a test."""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psutil
import psycopg2
import pytest
import redis
from psycopg2 import sql

from models.errors import Misconfigured
from producer import embedded
from producer.embedded import directories, postgres, programs, valkey

# Database 0 belongs to whoever uses the session's servers by their own address.
_redis_databases = itertools.cycle(range(1, 15))


# No test's data outlive a power cut: nothing waits for the disk. A killed server loses nothing.
_CARELESS = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
}
# Where the data lie if there is so much room. Before ext4 gives an inode out it looks at all that
# were deleted lately, and the tests make and drop databases of three hundred files each.
_MEMORY, _ROOM = Path("/dev/shm"), 8 << 30
_PREFIX = "migration-tests-"
_OURS = ("MIGRATION_", "CELERY_", "FLOWER_", "OTEL_", "PG", "DATABASE_URL", "REDIS_URL")
# A shell lets what runs in its background ignore this, and so would what a test starts and stops.
signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def careless() -> Iterator[None]:
    """A PostgreSQL that is started in the block writes without waiting for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(postgres, "SETTINGS", postgres.SETTINGS | _CARELESS)
        yield


def _settle() -> Path:
    """A MIGRATION_HOME of the session's own, and none of the caller's settings.

    A developer's DATABASE_URL may lead to a database that matters.
    """
    for name in list(os.environ):
        if name.startswith(_OURS):
            del os.environ[name]
    for place in (_MEMORY, Path(tempfile.gettempdir())):
        _sweep(place)
    place = _place()
    made = Path(tempfile.mkdtemp(dir=place))
    # Root's servers run as another user.
    made.chmod(0o755)
    # Before it has the name by which others find it.
    _hold(made / "lock", os.O_CREAT)
    home = made.rename(place / f"{_PREFIX}{made.name}") / ".migration"
    os.environ["MIGRATION_HOME"] = str(home)
    return home


def _place() -> Path:
    if _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK):
        room = min(shutil.disk_usage(_MEMORY).free, psutil.virtual_memory().available)
        # The programs of root's servers may have to lie beside their data.
        if room >= _ROOM and not os.statvfs(_MEMORY).f_flag & os.ST_NOEXEC:
            return _MEMORY
    return Path(tempfile.gettempdir())


def _hold(lock: Path, flags: int = 0) -> bool:
    """Lock a session's folder until this process ends; False where another one holds it."""
    held = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        return False
    return True


def _sweep(place: Path) -> None:
    """End the servers of our own sessions that were killed, and remove their data."""
    for folder in place.glob(f"{_PREFIX}*"):
        with suppress(OSError, Misconfigured):
            is_ours = not folder.is_symlink() and folder.stat().st_uid == os.geteuid()
            if is_ours and _hold(folder / "lock"):
                for home in folder.rglob(".migration"):
                    embedded.erase(home)
                shutil.rmtree(folder, ignore_errors=True)


_HOME = _settle()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors: some tests wait for a server or for a lock."""
    return (os.cpu_count() or 1) + 1


def pytest_configure(config: pytest.Config) -> None:
    """Start the session's servers: some modules use them when they are imported.

    The process that only hands the tests out to others imports none and needs no servers.
    """
    hands_out = config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput")
    if not hands_out:
        # A test that needs them says what is missing.
        with suppress(Misconfigured), careless():
            embedded.start(_HOME)


@pytest.fixture(scope="session", autouse=True)
def _environment() -> Iterator[Path]:
    yield _HOME


def pytest_unconfigure() -> None:
    """No server and no folder outlives the session, whether a test asked for them or not."""
    embedded.erase(_HOME)
    shutil.rmtree(_HOME.parent, ignore_errors=True)


@pytest.fixture(scope="session")
def servers(_environment: Path) -> Iterator[embedded.Servers]:
    """The session's PostgreSQL and Valkey, under the session's MIGRATION_HOME."""
    try:
        with careless():
            found = embedded.start(_environment)
        yield found
    finally:
        embedded.erase(_environment)


@pytest.fixture
def database(servers: embedded.Servers) -> Iterator[str]:
    """The address of an empty database of the test's own."""
    with fresh_database(servers.database_url) as url:
        yield url


@pytest.fixture
def redis_url(servers: embedded.Servers) -> Iterator[str]:
    """The address of an empty Redis database that no other test uses at the same time."""
    url = servers.redis_url.replace("db=0", f"db={next(_redis_databases)}")
    with closing(redis.Redis.from_url(url)) as client:
        client.flushdb()
    yield url


@pytest.fixture
def run_alone(redis_url: str, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs code in a process of its own, since the application reads the broker's address once."""
    environment = os.environ | {
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nowhere",
        "REDIS_URL": redis_url,
    }
    return lambda code, **more: subprocess.run(
        [sys.executable, "-c", code],
        env=environment | more,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[directories.Place]:
    """A Redis of the test's own, to be stopped, starved or counted."""
    home = tmp_path / "redis" / ".migration"
    try:
        with directories.locked(home):
            place = directories.prepare(home)
            valkey.run_redis(programs.valkey_program(), place)
        yield place
    finally:
        embedded.erase(home)


@pytest.fixture(scope="session")
def old_postgres(_environment: Path) -> Iterator[str]:
    """The address of a PostgreSQL 15, the oldest that a wheel carries."""
    try:
        bin_dir = programs.postgres_bin_dir("pgserver")
    except Misconfigured:
        pytest.skip("no wheel of pgserver for this platform and Python")
    home = _environment.parent / "old" / ".migration"
    try:
        with directories.locked(home), careless():
            place = directories.prepare(home)
            postgres.run_postgres(bin_dir, place)
        yield f"postgresql://postgres@/dashboard?host={place.sockets}"
    finally:
        embedded.erase(home)


@pytest.fixture
def old_database(old_postgres: str) -> Iterator[str]:
    """The address of an empty database of the test's own on the PostgreSQL 15."""
    with fresh_database(old_postgres) as url:
        yield url


@pytest.fixture(scope="session")
def icu_postgres(_environment: Path) -> Iterator[str]:
    """The address of a PostgreSQL of the distribution's: it has ICU, and contrib's extensions."""
    found = sorted(Path("/").glob("usr/lib/postgresql/*/bin/postgres"))
    if not found:
        pytest.skip("no PostgreSQL with ICU here: apt-get install postgresql postgresql-contrib")
    home = _environment.parent / "icu" / ".migration"
    try:
        with directories.locked(home), careless():
            place = directories.prepare(home)
            postgres.run_postgres(found[-1].parent, place)
        yield f"postgresql://postgres@/dashboard?host={place.sockets}"
    finally:
        embedded.erase(home)


def address(place: directories.Place) -> str:
    """The address of a Redis of the test's own."""
    return f"unix://{place.sockets / directories.REDIS_SOCKET}?db=0"


@contextmanager
def fresh_database(server: str, *, template: str = "template1", options: str = "") -> Iterator[str]:
    """The address of a database on that server, for the time of the block.

    It is empty, or a copy of the template: a database that nobody is connected to, by name.
    """
    name = f"test_{uuid.uuid4().hex}"
    _execute(server, f"CREATE DATABASE {{}} TEMPLATE {{}} {options}", name, template)
    try:
        yield server.replace("/dashboard?", f"/{name}?")
    finally:
        _execute(server, "DROP DATABASE {} WITH (FORCE)", name)


def _execute(server: str, statement: str, *names: str) -> None:
    with closing(psycopg2.connect(server)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))
