"""What the throttle reads from a real server."""

from __future__ import annotations

from contextlib import ExitStack

import psycopg2
from sqlalchemy import Engine

from models.postgres.load import Gauge

USERS = 10


def share(engine: Engine) -> float:
    with engine.connect() as connection:
        found = Gauge().read(connection)["connections"]
    assert found is not None
    return found


def test_idle_sessions_of_ours_are_no_strain_and_others_are(engine: Engine, database: str) -> None:
    slots = 20

    def hold(stack: ExitStack, application: str) -> None:
        for _ in range(slots):
            session = psycopg2.connect(database, application_name=application)
            stack.callback(session.close)

    with engine.connect() as connection:
        limit = int(connection.exec_driver_sql("SHOW max_connections").scalar_one())
    with ExitStack() as stack:
        hold(stack, "migration")
        with ExitStack() as others:
            # Tests at the same time have sessions of their own: their number may change by a few.
            before = share(engine)
            hold(others, "dashboard")
            assert share(engine) - before > slots / 2 / limit
        idle = share(engine)
        hold(stack, "migration")
        assert share(engine) - idle < slots / 2 / limit
