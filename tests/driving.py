"""The engine in the test's own process, batch by batch, so that a test can stop between any two."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, event, text

from models.ledger.tables import WORKED_ON, batches, runs
from models.postgres import database as databases
from models.reports.run import RunReport
from models.settings import Settings
from producer.reports import status
from producer.runs import advance
from producer.schema import upgrade
from tests.variants import Variant
from tests.wait import until
from worker import batch


def change(engine: Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement.replace("%", "%%"))


@contextmanager
def in_shape(
    address: str, settings: Settings, variant: Variant, users: int
) -> Iterator[tuple[Engine, Settings]]:
    """An empty database with the legacy tables of this shape, and the settings that name them."""
    names = variant.names
    tables = {"users_table": names.users, "subscriptions_table": names.subscriptions}
    engine = databases.create(address)
    try:
        with engine.begin() as connection:
            variant.build(connection, users)
        yield engine, settings.model_copy(update={**tables, "projects_table": names.projects})
    finally:
        engine.dispose()


def scalar(engine: Engine, query: str) -> Any:
    with engine.connect() as connection:
        return connection.scalar(text(query))


def start(engine: Engine, settings: Settings) -> str:
    upgrade.upgrade(engine, settings)
    run_id, _ = advance.open_run(engine, settings)
    return run_id


def pending(connection: Connection, run_id: str) -> Sequence[Any]:
    """The batches of a run that wait for a worker, in their order."""
    query = sa.select(batches).where(batches.c.run_id == run_id, batches.c.state == "pending")
    return connection.execute(query.order_by(batches.c.id)).all()


def go_on(
    engine: Engine,
    settings: Settings,
    run_id: str,
    *,
    before: Callable[[str], None] = lambda stage: None,
    backwards: bool = False,
) -> RunReport:
    """Advance and work until the run is over; `before` is called with each batch's stage."""
    while True:
        advance.advance(engine, settings, run_id)
        with engine.connect() as connection:
            waiting = pending(connection, run_id)
            state = connection.scalar(sa.select(runs.c.state).where(runs.c.id == run_id))
        if state not in WORKED_ON:
            return status.read(engine, run_id)
        for row in reversed(waiting) if backwards else waiting:
            before(row.stage)
            batch.run(engine, settings, run_id, row.id, "test")


def whole_run(engine: Engine, settings: Settings, **options: Any) -> RunReport:
    return go_on(engine, settings, start(engine, settings), **options)


@dataclass
class Spent:
    """What a piece of work asked of the database."""

    statements: int = 0
    rows: int = 0


@contextmanager
def spent(engine: Engine) -> Iterator[Spent]:
    """Count the statements that the block sends through the engine, and the rows they return."""
    found = Spent()

    def count(_: Any, cursor: Any, *__: Any) -> None:
        # A savepoint goes with the next one.
        found.statements += cursor.statusmessage is not None
        found.rows += cursor.rowcount if cursor.description else 0

    event.listen(engine, "after_cursor_execute", count)
    try:
        yield found
    finally:
        event.remove(engine, "after_cursor_execute", count)


def wait_for_lock(engine: Engine) -> None:
    """Wait until some session waits for a row that another one holds."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    until(lambda: scalar(engine, query), "nobody waits for a lock")
