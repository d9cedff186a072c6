"""The sessions that workers may open, against the slots that PostgreSQL has free."""

from __future__ import annotations

from itertools import count

import pytest
from sqlalchemy import Engine, event, text

from models.errors import Unreachable
from models.postgres import database as databases
from models.reports.diagnosis import Worker
from producer.checks import slots

USERS = 10


def test_more_processes_than_slots_are_said_with_numbers(engine: Engine) -> None:
    with engine.connect() as connection:
        most = int(connection.scalar(text("SHOW max_connections")) or 0)
        many = [Worker(name="w@h", processes=list(range(most)), queues=[])]
        said = slots.shortage(connection, many)
        assert said and f"{most} worker processes" in said and f"{2 * most + 3} sessions" in said
        assert slots.shortage(connection, [Worker(name="w@h", processes=[1, 2], queues=[])]) is None
        assert slots.shortage(connection, []) is None


def test_a_command_waits_for_a_slot_and_then_says_what_to_do(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(databases, "SLOT_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(databases, "SLOT_SECONDS", 0.1)
    role = f"{engine.url.database}_narrow"
    with engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 1"))
    folder = engine.url.query.get("host", engine.url.host)
    address = f"postgresql://{role}@/{engine.url.database}?host={folder}"
    first, second = databases.create(address), databases.create(address)
    try:
        held = first.connect()
        with pytest.raises(Unreachable) as raised:
            databases.check_reachable(second)
        assert "too many connections" in raised.value.message
        assert "pg_use_reserved_connections" in raised.value.hint

        attempts = count()

        @event.listens_for(second, "do_connect")
        def free_at_the_third(*_: object) -> None:
            if next(attempts) == 2:
                held.close()
                first.dispose()

        monkeypatch.setattr(databases, "SLOT_SECONDS", 1000.0)
        assert databases.check_reachable(second) >= databases.OLDEST_SERVER
    finally:
        first.dispose()
        second.dispose()
        with engine.begin() as connection:
            connection.execute(text(f"DROP ROLE {role}"))
