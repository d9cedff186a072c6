"""More worker processes than PostgreSQL has connections: the run ends, and an operator can look."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from models.postgres import database as databases
from producer import embedded
from producer.demo import sample
from producer.embedded import postgres
from tests.acceptance.conftest import Product, batches, make
from tests.conftest import careless
from tests.wait import until

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture
def narrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Product]:
    """The product as an ordinary role on a PostgreSQL of 20 connections, 3 of them reserved."""
    home = tmp_path / "servers"
    with careless():
        monkeypatch.setitem(postgres.SETTINGS, "max_connections", "20")
        servers = embedded.start(home)
    try:
        admin = databases.create(servers.database_url)
        with admin.begin() as connection:
            connection.execute(text("CREATE ROLE app LOGIN"))
            connection.execute(text("ALTER DATABASE dashboard OWNER TO app"))
            connection.execute(text("ALTER SCHEMA public OWNER TO app"))
        admin.dispose()
        database = servers.database_url.replace("postgres@", "app@")
        yield from make(database, servers.redis_url, tmp_path)
    finally:
        embedded.erase(home)


def test_forty_processes_on_twenty_connections_end_the_run(narrow: Product) -> None:
    with narrow.engine.begin() as connection:
        sample.load(connection, 300)
    narrow.engine.dispose()
    narrow.environment["MIGRATION_BATCH_SIZE"] = "10"
    waiting = narrow.start("enqueue-all", "--wait", "--json")
    with narrow.worker("--concurrency=40"):
        reserved = narrow.environment["DATABASE_URL"].replace("app@", "postgres@")
        until(lambda: narrow.run("status", "--json", DATABASE_URL=reserved).status == 0)
        _, err = waiting.communicate(timeout=400)
    assert waiting.returncode == 3, err
    assert batches(narrow, "done")
