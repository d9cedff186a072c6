"""The sessions that workers may open, against the slots that PostgreSQL has free."""

from __future__ import annotations

from sqlalchemy import Engine, text

from models.reports.diagnosis import Worker
from producer.checks import slots

USERS = 10


def test_more_processes_than_slots_are_said_with_numbers(engine: Engine) -> None:
    with engine.connect() as connection:
        most = int(connection.scalar(text("SHOW max_connections")) or 0)
        many = [Worker(name="w@h", processes=list(range(most)), queues=[])]
        said = slots.shortage(connection, many)
        assert said and f"{most} worker processes" in said and f"{2 * most + 2} sessions" in said
        assert slots.shortage(connection, [Worker(name="w@h", processes=[1, 2], queues=[])]) is None
        assert slots.shortage(connection, []) is None
