"""A ledger of an older revision, with a run in the middle, is upgraded and its run ends right."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import psycopg2
import pytest
from alembic import command
from click.testing import CliRunner
from sqlalchemy import Engine, text

from models.errors import Misconfigured
from models.postgres import database as databases
from models.settings import Settings, load
from producer import connect, embedded
from producer.checks import check as checks
from producer.cli import cli
from producer.reports import status
from producer.runs import rollback
from producer.schema import upgrade
from tests import oracle, variants
from tests.conftest import fresh_database
from tests.driving import go_on, scalar, whole_run

# Of revision d5747e2: 80 users, four batches of ten are done, and the application wrote since.
DUMP = Path(__file__).parents[1] / "data" / "ledger_0_1.sql.gz"
USERS = 80
WRITTEN_SINCE = "UPDATE users SET role = 'teacher' WHERE id = (SELECT min(id) FROM users)"


@pytest.fixture
def settings(servers: object) -> Settings:
    return load().model_copy(update={"batch_size": 10})


@pytest.fixture
def engine(database: str) -> Iterator[Engine]:
    """The database as version 0.1 left it."""
    with closing(psycopg2.connect(database)) as connection, connection, connection.cursor() as rows:
        rows.execute(gzip.decompress(DUMP.read_bytes()).decode())
    engine = databases.create(database)
    yield engine
    engine.dispose()


@pytest.fixture
def before(servers: embedded.Servers) -> Iterator[oracle.Snapshot]:
    """The legacy rows as they were, and are now."""
    with fresh_database(servers.database_url) as url:
        other = databases.create(url)
        with other.begin() as connection:
            variants.PLAIN.build(connection, USERS)
            connection.execute(text(WRITTEN_SINCE))
            yield oracle.snapshot(connection, oracle.Names())
        other.dispose()


def test_a_run_of_version_0_1_ends_right_after_the_upgrade(
    engine: Engine, settings: Settings, before: oracle.Snapshot
) -> None:
    upgrade.upgrade(engine, settings)
    run_id = scalar(engine, "SELECT id FROM migration.runs WHERE state = 'running'")
    found = go_on(engine, settings, run_id)
    assert (found.state, found.differences) == ("completed_with_quarantine", {})
    with engine.connect() as connection:
        assert oracle.compare_now(connection, before, dict(settings.credit_grants)) == []


def test_who_forgot_the_upgrade_is_told_what_to_type(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "engine", lambda: engine)
    for command_of in (("status",), ("doctor",), ("serve", "--port", "0"), ("rollback", "--yes")):
        ended = CliRunner().invoke(cli, command_of)
        assert ended.exit_code == 2
        assert "The ledger is of an older version of this product" in ended.stderr
        assert ended.stderr.splitlines()[-1] == "Run: producer schema upgrade"
    found = {each.name: each for each in checks.examine(engine, settings)}["ledger"]
    assert (found.verdict, found.found) == ("warning", "of an older version of this product")
    assert "producer schema upgrade" in found.hint
    # A role that may not read the revision learns it from the statement that fails.
    with pytest.raises(Misconfigured) as refused, databases.as_ours():
        status.read(engine, None)
    assert "does not exist" in refused.value.message
    assert "producer schema upgrade" in refused.value.hint


def test_the_upgrade_keeps_what_the_ledger_held(engine: Engine, settings: Settings) -> None:
    held = "SELECT md5(string_agg(b::text, '' ORDER BY b.id)) FROM migration.batches b"
    before = scalar(engine, held)
    upgrade.upgrade(engine, settings)
    assert scalar(engine, held) == before
    assert scalar(engine, "SELECT version_num FROM migration.alembic_version") != "0001"


def test_the_upgrade_gives_verification_and_reconciliation_one_position(
    engine: Engine, settings: Settings
) -> None:
    upgrade.upgrade(engine, settings)
    query = (
        "SELECT jsonb_object_agg(name, position) FROM migration.stages WHERE direction = 'forward'"
    )
    found = scalar(engine, query)
    assert found["switch"] < found["verification"] == found["reconciliation"] < found["finish"]


class Interrupted(Exception):
    """Ends the work at a stage."""


@pytest.mark.long
def test_a_rollback_of_revision_0003_ends_right_after_the_upgrade(
    database: str, settings: Settings
) -> None:
    """It stops between two of its stages, and its ledger is taken back to that revision."""

    def stop(stage: str) -> None:
        if stage == "undo_users":
            raise Interrupted

    engine = databases.create(database)
    with engine.begin() as connection:
        variants.PLAIN.build(connection, USERS)
    upgrade.upgrade(engine, settings)
    with engine.connect() as connection:
        before = oracle.snapshot(connection, oracle.Names())
    whole_run(engine, settings)
    run_id = rollback.start(engine, settings, None, force=False)
    with suppress(Interrupted):
        go_on(engine, settings, run_id, before=stop)
    with engine.begin() as connection:
        config = upgrade._alembic()
        config.attributes["connection"] = connection
        command.downgrade(config, "0003")
    position = "SELECT position FROM migration.stages WHERE name = 'undo_users'"
    assert scalar(engine, position) == 1002
    upgrade.upgrade(engine, settings)
    found = go_on(engine, settings, run_id)
    assert (found.state, found.conflicts) == ("rolled_back", {})
    with engine.connect() as connection:
        assert oracle.snapshot(connection, oracle.Names()) == before
    engine.dispose()
