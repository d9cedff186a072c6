"""The beginning of a run: what is in its way, the schema step, and the run itself."""

from __future__ import annotations

import threading
from contextlib import suppress

from sqlalchemy import Engine

from models.engine import current
from models.ledger import selection
from models.ledger.selection import Choice
from models.postgres import database
from models.settings import Settings
from producer import tracing
from producer.broker import readiness
from producer.checks import preflight
from producer.notices import send
from producer.runs import advance
from producer.schema import upgrade as schema_step


def begin(engine: Engine, settings: Settings, choice: Choice | None = None) -> tuple[str, bool]:
    """Prepare the schema and open a run, or join the open one; its id, and whether it is new.

    `advance` fans it out. Raises the first obstacle, and then no run was opened.
    """
    tracing.require(settings)
    send.require(settings)
    threading.Thread(target=_load_publishing, daemon=True, name="load").start()
    database.check_reachable(engine)
    readiness.require()
    tried = preflight.require(engine, settings)
    if choice is not None:
        _require_rows(engine, settings, choice)
    schema_step.upgrade(engine, settings)
    if not tried.is_real:
        preflight.require(engine, settings, before=tried)
    return advance.open_run(engine, settings, choice)


def _load_publishing() -> None:
    """Load Celery while the command waits for the database; what fails, fails where it is used."""
    with suppress(Exception):
        from producer.broker import queue  # noqa: F401


def _require_rows(engine: Engine, settings: Settings, choice: Choice) -> None:
    """Raise Misconfigured for a choice of rows that are not there, before the schema step."""
    migration = current.migration()
    with database.transaction(engine) as connection:
        selection.choose(connection, migration, migration.read(connection, settings), choice)
