"""A test kit for migrations: a whole run on the embedded servers, in the test's own process.

with testing.site("badges_migration:MIGRATION", TABLES) as site:
    assert site.play_examples() == []
    assert site.run().exit_status == 0
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import Engine, text

from models.postgres import database
from models.reports.run import RunReport
from models.settings import Settings, load
from producer import embedded


@dataclass(frozen=True)
class Site:
    """A database of its own with the given tables, and a migration over it."""

    engine: Engine
    settings: Settings

    def execute(self, *statements: str) -> None:
        """Run statements as the application does."""
        with self.engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement.replace("%", "%%"))

    def rows(self, query: str) -> list[dict[str, Any]]:
        """The rows of a query."""
        with self.engine.connect() as connection:
            return [dict(row._mapping) for row in connection.execute(text(query))]

    def play_examples(self) -> list[str]:
        """A sentence for each example of a step that does not come out as it says."""
        from producer.checks import examples

        return examples.play(self.engine, self.settings)

    def run(self, before: Callable[[str], None] = lambda stage: None) -> RunReport:
        """Migrate, verify and finish; `before` is called with each batch's stage.

        What it writes then is written while the run is on.
        """
        from producer.runs import advance
        from producer.schema import upgrade

        upgrade.upgrade(self.engine, self.settings)
        run_id, _ = advance.open_run(self.engine, self.settings)
        return self._work(run_id, before)

    def retry(self) -> RunReport:
        """Try what is quarantined or differs again, as `producer retry` does."""
        from producer.runs import control

        return self._work(control.retry(self.engine, self.settings, None))

    def verify(self) -> RunReport:
        """Verify once more, as `producer verify` does."""
        from producer.runs import control

        return self._work(control.check_again(self.engine, self.settings, None, "verification"))

    def rollback(self, *, force: bool = False) -> RunReport:
        """Undo the newest run, as `producer rollback` does."""
        from producer.runs import rollback

        return self._work(rollback.start(self.engine, self.settings, None, force=force))

    def quarantined(self) -> dict[str, str]:
        """The reason of each row that is quarantined, by key."""
        found = self.rows(
            "SELECT legacy_key, reason FROM migration.quarantine"
            " WHERE state IN ('open', 'accepted')"
        )
        return {row["legacy_key"]: row["reason"] for row in found}

    def _work(self, run_id: str, before: Callable[[str], None] = lambda stage: None) -> RunReport:
        """Advance and work, batch by batch, until the run is over."""
        from models.ledger.tables import WORKED_ON
        from producer.reports import status
        from producer.runs import advance
        from worker import batch

        while True:
            advance.advance(self.engine, self.settings, run_id)
            found = status.read(self.engine, run_id)
            if found.state not in WORKED_ON:
                return found
            waiting = self.rows(
                "SELECT id, stage FROM migration.batches WHERE state = 'pending' ORDER BY id"
            )
            for row in waiting:
                before(row["stage"])
                batch.run(self.engine, self.settings, run_id, row["id"], "test")


@contextmanager
def site(migration: str, *statements: str, batch_size: int = 100) -> Iterator[Site]:
    """A site for the migration `package.module:NAME`, with the tables that the statements make.

    Starts embedded servers at its first use; they and their data go when the process ends.
    """
    servers = _servers()
    name = f"test_{uuid.uuid4().hex}"
    address = servers.database_url.replace("/dashboard?", f"/{name}?")
    before = os.environ.get("MIGRATION")
    os.environ["MIGRATION"] = migration
    _run_alone(servers.database_url, f"CREATE DATABASE {name}")
    engine = database.create(address)
    try:
        found = Site(engine, load().model_copy(update={"batch_size": batch_size}))
        found.execute(*statements)
        yield found
    finally:
        engine.dispose()
        _run_alone(servers.database_url, f"DROP DATABASE {name} WITH (FORCE)")
        if before is None:
            del os.environ["MIGRATION"]
        else:
            os.environ["MIGRATION"] = before


@functools.cache
def _servers() -> embedded.Servers:
    """The servers of this process, in a folder of its own, unless it has a home already."""
    home = os.environ.get("MIGRATION_HOME")
    if home and embedded.exist(Path(home).absolute()):
        return embedded.start(Path(home).absolute())
    folder = Path(tempfile.mkdtemp(prefix="migration-testing-"))
    os.environ["MIGRATION_HOME"] = str(folder / ".migration")
    for name in ("DATABASE_URL", "REDIS_URL"):
        os.environ.pop(name, None)

    def erase() -> None:
        embedded.erase(folder / ".migration")
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(erase)
    # Batches that are done are no news in a test.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    return embedded.start(folder / ".migration")


def _run_alone(url: str, statement: str) -> None:
    engine = database.create(url)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(statement)
    engine.dispose()
