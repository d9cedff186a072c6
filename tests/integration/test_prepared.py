"""A prepared transaction belongs to no session, and holds its locks until somebody ends it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from models.errors import Transient
from models.postgres import database as databases
from models.settings import load
from producer import embedded
from producer.checks import check
from producer.embedded import directories, postgres, programs
from producer.schema import upgrade
from tests import variants


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """A server that keeps prepared transactions, with the legacy tables."""
    home = tmp_path / ".migration"
    settings = postgres.SETTINGS | {"max_prepared_transactions": "2"}
    monkeypatch.setattr(postgres, "SETTINGS", settings)
    try:
        with directories.locked(home):
            place = directories.prepare(home)
            postgres.run_postgres(programs.postgres_bin_dir(), place)
        engine = databases.create(f"postgresql://postgres@/dashboard?host={place.sockets}")
        with engine.begin() as connection:
            variants.PLAIN.build(connection, 20)
        yield engine
        engine.dispose()
    finally:
        embedded.erase(home)


def test_one_that_was_forgotten_is_named(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "LOCK_SECONDS", 0)
    monkeypatch.setattr(databases, "LOCK_ATTEMPTS", 1)
    with engine.begin() as connection:
        connection.exec_driver_sql("LOCK TABLE users IN ROW EXCLUSIVE MODE")
        connection.exec_driver_sql("PREPARE TRANSACTION 'forgotten'")
    with engine.connect() as connection, connection.begin():
        found = check._locks(connection, load())
    assert found.verdict == "failed"
    assert "'forgotten'" in found.found and "ROLLBACK PREPARED" in found.hint
    with pytest.raises(Transient) as refused:
        upgrade.upgrade(engine, load())
    assert "pg_prepared_xacts" in refused.value.hint
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ROLLBACK PREPARED 'forgotten'")
    with engine.connect() as connection, connection.begin():
        assert check._locks(connection, load()).verdict == "ok"
