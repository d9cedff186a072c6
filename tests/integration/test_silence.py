"""A server that acknowledges whatever comes, and never answers: no statement waits forever."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from models.engine.step import Scope
from models.errors import Transient
from models.ledger.claims import Claim
from models.postgres import database as databases
from models.postgres import limited
from models.postgres.database import classify, transaction
from producer.embedded import Servers
from tests.proxy import Proxy, proxy
from tests.wait import until
from worker import lease, shutdown


@pytest.fixture
def between(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy before PostgreSQL, and calls that are asked about soon."""
    monkeypatch.setattr(limited, "ASK_SECONDS", 0.2)
    monkeypatch.setattr(limited, "ANSWER_SECONDS", 1.0)
    folder = parse_qs(urlsplit(servers.database_url).query)["host"][0]
    with proxy(Path(folder) / ".s.PGSQL.5432") as made:
        yield made


@pytest.fixture
def engine(between: Proxy) -> Iterator[Engine]:
    engine = databases.create(f"postgresql://postgres@127.0.0.1:{between.port}/postgres")
    yield engine
    with suppress(DBAPIError):
        engine.dispose()


@pytest.mark.parametrize("call", ["statement", "commit"])
@pytest.mark.parametrize("new", ["new connections, too", "only the open ones"])
def test_a_call_ends_when_the_server_falls_silent(
    engine: Engine, between: Proxy, call: str, new: str
) -> None:
    with pytest.raises(DBAPIError) as raised, transaction(engine) as connection:
        connection.execute(text("SELECT pg_current_xact_id()"))
        between.mute()
        between.is_silent = new == "new connections, too"
        if call == "statement":
            connection.execute(text("SELECT 1"))
    assert isinstance(classify(raised.value), Transient)


def test_a_worker_that_stops_waits_for_no_silent_server(
    engine: Engine, between: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only the worker's end is to end the call.
    monkeypatch.setattr(limited, "ASK_SECONDS", 1000.0)
    monkeypatch.setattr(lease, "CANCEL_SECONDS", 0.2)
    claim = Claim("20260101-000000-aaaa", 1, "users", "users", 1, Scope(None, None))
    with (
        pytest.raises(DBAPIError) as raised,
        lease.Watch(engine, claim) as watch,
        transaction(engine) as connection,
        watch.over(connection),
    ):
        between.is_silent = True
        monkeypatch.setattr(shutdown, "is_due", lambda: True)
        connection.execute(text("SELECT pg_sleep(1000)"))
    assert isinstance(classify(raised.value), Transient)


# Off: nobody sees what it does, as where a role took on another one that is no member of it.
@pytest.mark.parametrize("seen", ["on", "off"])
def test_a_statement_that_the_server_works_on_may_take_its_time(engine: Engine, seen: str) -> None:
    with transaction(engine) as connection:
        connection.execute(text(f"SET LOCAL track_activities = {seen}"))
        assert connection.scalar(text("SELECT 7 FROM pg_sleep(2)")) == 7


# The address is read once a process. What it prints is why each call failed.
SILENT_REDIS = """
import pathlib, socket, time
from producer import connect
connect.REDIS_SECONDS = 0.3
from producer.broker.queue import app
from producer.outage import cause
from producer.runs.reconciler import queue_lengths

queue_lengths()
app.backend.set_chord_size("x", 1)
for pool in (app.backend.client.connection_pool, app.connection().default_channel.pool):
    wire = pool.get_connection()._sock
    assert wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000
app.backend.client.connection_pool.reset()
app.backend.set_chord_size("x", 1)
pathlib.Path("ready").touch()
while not pathlib.Path("silent").exists():
    time.sleep(0.01)
for call in (queue_lengths, lambda: app.backend.client.get("x")):
    try:
        call()
    except Exception as failure:
        print(cause(failure))
"""


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system has no such limit")
def test_broker_and_results_give_a_silent_redis_up(
    redis_url: str, tmp_path: Path, run_alone: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    url = urlsplit(redis_url)
    with proxy(Path(url.path)) as between, ThreadPoolExecutor(1) as pool:
        address = f"redis://127.0.0.1:{between.port}/{parse_qs(url.query)['db'][0]}"
        running = pool.submit(run_alone, SILENT_REDIS, REDIS_URL=address)
        until(lambda: running.done() or (tmp_path / "ready").exists())
        between.is_silent = True
        (tmp_path / "silent").touch()
        ended = running.result()
    assert ended.stdout == "Redis cannot be used now: no answer in time\n" * 2, ended.stderr
