"""Which ledger, which tables: by what they are, not by what they are called."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from models.engine import current
from models.errors import Misconfigured, OtherTables
from models.postgres import database as databases
from models.reports.run import RunReport
from models.settings import Settings
from producer import embedded
from producer.broker import namespace
from producer.runs import advance, control, rollback
from producer.schema import upgrade
from tests.conftest import fresh_database
from tests.driving import change, go_on, scalar, start, whole_run
from worker import batch

USERS = 60
pytestmark = pytest.mark.usefixtures("bare")
BATCH_SIZE = 20
ID = "SELECT id FROM migration.ledger"
FIRST = "SELECT min(id) FROM migration.batches"


@contextmanager
def copy(servers: embedded.Servers, engine: Engine) -> Iterator[Engine]:
    """A copy of the engine's database, made by CREATE DATABASE TEMPLATE."""
    engine.dispose()
    name = str(engine.url.database)
    with fresh_database(servers.database_url, template=name) as url:
        other = databases.create(url)
        yield other
        other.dispose()


def other_schema(engine: Engine, name: str = "old") -> None:
    """The legacy tables once more, in another schema."""
    change(engine, f"CREATE SCHEMA {name}")
    for table in ("users", "gpt_subscriptions", "projects"):
        change(
            engine,
            f"CREATE TABLE {name}.{table} (LIKE public.{table} INCLUDING ALL)",
            f"INSERT INTO {name}.{table} SELECT * FROM public.{table}",
        )


def astray(address: str) -> Engine:
    """Connections whose search_path leads to the other schema."""
    return databases.create(f"{address}&options=-csearch_path%3Dold%2Cpublic")


def test_a_ledger_keeps_its_id_and_a_copy_takes_another(
    engine: Engine, settings: Settings, servers: embedded.Servers
) -> None:
    upgrade.upgrade(engine, settings)
    first = scalar(engine, ID)
    upgrade.upgrade(engine, settings)
    assert scalar(engine, ID) == first
    with copy(servers, engine) as other:
        namespace.follow(other, settings)
        assert namespace.known() == namespace.NO_LEDGER
        upgrade.upgrade(other, settings)
        namespace.follow(other, settings)
        assert scalar(other, ID) != first
        assert namespace.known() == namespace.of(scalar(other, ID))
    assert scalar(engine, ID) == first


def test_a_run_in_a_copy_goes_on_only_after_the_copy_has_an_id(
    engine: Engine, settings: Settings, servers: embedded.Servers
) -> None:
    run_id = start(engine, settings)
    advance.advance(engine, settings, run_id)
    with copy(servers, engine) as other:
        with pytest.raises(Misconfigured, match="copy"):
            advance.advance(other, settings, run_id)
        upgrade.upgrade(other, settings)
        # All oids are those of the original: the tables are the same ones.
        assert go_on(other, settings, run_id).exit_status == 3


def test_a_renamed_database_is_the_same_one(engine: Engine, settings: Settings) -> None:
    upgrade.upgrade(engine, settings)
    change(engine, "UPDATE migration.ledger SET database = database || '_renamed'")
    assert scalar(engine, "SELECT migration.ledger_id()") == scalar(engine, ID)


@pytest.mark.parametrize("part", [r"'^\d+/\d+', '1/1'", r"'/\d+/', '/1/'", r"'^\d+/', '1/'"])
def test_another_cluster_or_oid_is_another_database(
    engine: Engine, settings: Settings, part: str
) -> None:
    upgrade.upgrade(engine, settings)
    change(engine, f"UPDATE migration.ledger SET database = regexp_replace(database, {part})")
    assert scalar(engine, "SELECT migration.ledger_id()") is None


def test_a_role_that_may_not_see_the_cluster_knows_the_database_by_oid_and_name(
    engine: Engine, settings: Settings
) -> None:
    upgrade.upgrade(engine, settings)
    change(engine, "UPDATE migration.ledger SET database = regexp_replace(database, '^[0-9]+', '')")
    assert scalar(engine, "SELECT migration.ledger_id()") == scalar(engine, ID)
    change(engine, "UPDATE migration.ledger SET database = database || '_other'")
    assert scalar(engine, "SELECT migration.ledger_id()") is None


def test_a_worker_with_another_search_path_leaves_the_run_alone(
    engine: Engine, settings: Settings, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "STRANGER_SECONDS", 0)
    other_schema(engine)
    run_id = start(engine, settings)
    advance.advance(engine, settings, run_id)
    stray = astray(database)
    first = scalar(engine, FIRST)
    for _ in range(10):
        assert batch.run(stray, settings, run_id, first, "stray") == {"outcome": "failed"}
    state = "SELECT state || ' ' || hand_backs || ' ' || lapses FROM migration.batches WHERE id = "
    assert scalar(engine, f"{state}{first}") == "pending 0 0"
    with pytest.raises(OtherTables, match=r"old\.users.*public\.users"):
        advance.advance(stray, settings, run_id)
    namespace.follow(stray, settings)
    assert namespace.is_strangers(namespace.known())
    namespace.follow(engine, settings)
    assert namespace.known() == namespace.of(scalar(engine, ID))
    assert go_on(engine, settings, run_id).exit_status == 3
    assert scalar(engine, "SELECT to_regclass('old.ai_suites')") is None
    stray.dispose()


def test_a_worker_whose_mapping_broke_lets_others_have_the_batch(
    engine: Engine, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "STRANGER_SECONDS", 0.0)
    mapping = tmp_path / "mapping.toml"
    mapping.touch()
    settings = settings.model_copy(update={"mapping": str(mapping)})
    run_id = start(engine, settings)
    advance.advance(engine, settings, run_id)
    mapping.write_text("[oops")
    ended = batch.run(engine, settings, run_id, scalar(engine, FIRST), "stranger/1")
    assert ended == {"outcome": "failed"}
    # It waits to be published again, and is claimed by nobody.
    waiting = "SELECT count(*) FROM migration.batches WHERE state = 'pending' AND attempt = 1"
    assert scalar(engine, f"{waiting} AND published_at IS NULL") == 1


def test_a_batch_whose_schema_the_role_may_not_use_fails_and_says_so(
    engine: Engine, settings: Settings
) -> None:
    role = f"worker_{secrets.token_hex(4)}"
    tables = ", ".join(current.table_names(settings))
    run_id = start(engine, settings)
    advance.advance(engine, settings, run_id)
    change(
        engine,
        f"CREATE ROLE {role}; GRANT ALL ON SCHEMA migration TO {role};"
        f" GRANT ALL ON ALL TABLES IN SCHEMA migration TO {role};"
        f" GRANT SELECT ON {tables} TO {role};"
        " REVOKE USAGE ON SCHEMA public FROM PUBLIC",
    )
    named = {f"{name}_table": f"public.{name}" for name in ("users", "projects")}
    settings = settings.model_copy(update=named)

    def become(driver: Any, *_: Any) -> None:
        with driver.cursor() as cursor:
            cursor.execute(f"SET ROLE {role}")
        driver.commit()

    first = scalar(engine, FIRST)
    engine.dispose()
    event.listen(engine, "connect", become)
    try:
        ended = batch.run(engine, settings, run_id, first, "worker/1")
    finally:
        event.remove(engine, "connect", become)
        engine.dispose()
    said = f"SELECT state || ': ' || error FROM migration.batches WHERE id = {first}"
    error = scalar(engine, said)
    change(engine, f"DROP OWNED BY {role}; DROP ROLE {role}")
    assert ended == {"outcome": "failed"}
    assert error.startswith("failed: ") and "permission denied for schema public" in error


def test_a_second_set_of_tables_is_refused_by_name(
    engine: Engine, settings: Settings, database: str, finished: RunReport
) -> None:
    other_schema(engine)
    run_id = finished.run_id
    rows = "SELECT count(*) FROM migration.quarantine WHERE state = 'open'"
    before = scalar(engine, rows)
    stray = astray(database)
    for command in (
        lambda: upgrade.upgrade(stray, settings),
        lambda: advance.open_run(stray, settings),
        lambda: control.retry(stray, settings, run_id),
        lambda: rollback.start(stray, settings, run_id, force=False),
    ):
        with pytest.raises(Misconfigured, match=r"public\.users"):
            command()
    assert scalar(engine, rows) == before
    assert scalar(engine, "SELECT to_regclass('old.ai_suites')") is None
    stray.dispose()


def test_a_renamed_table_is_the_same_one(
    engine: Engine, settings: Settings, finished: RunReport
) -> None:
    run_id = finished.run_id
    assert run_id is not None
    change(engine, "ALTER TABLE projects RENAME TO works")
    renamed = settings.model_copy(update={"projects_table": "works"})
    control.retry(engine, renamed, run_id)
    assert go_on(engine, renamed, run_id).exit_status == 3
    kept = "SELECT relations->'projects'->>'name' FROM migration.runs"
    assert scalar(engine, kept) == "works"
    assert whole_run(engine, renamed).exit_status == 3


def test_oids_of_a_restored_ledger_mean_nothing(engine: Engine, settings: Settings) -> None:
    run_id = start(engine, settings)
    change(
        engine,
        "UPDATE migration.runs SET relations = jsonb_set(jsonb_set(relations, '{ledger,oid}', '1'),"
        " '{users,oid}', '1')",
    )
    assert go_on(engine, settings, run_id).exit_status == 3


def test_a_table_that_took_the_place_of_another_is_another(
    engine: Engine, settings: Settings
) -> None:
    run_id = start(engine, settings)
    change(
        engine,
        "ALTER TABLE projects RENAME TO works",
        "CREATE TABLE projects (LIKE works INCLUDING ALL)",
    )
    with pytest.raises(OtherTables, match="projects"):
        advance.advance(engine, settings, run_id)


def test_the_worker_role_needs_no_more_than_its_tables(engine: Engine, settings: Settings) -> None:
    upgrade.upgrade(engine, settings)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE ROLE reader; GRANT USAGE ON SCHEMA migration TO reader; SET LOCAL ROLE reader"
        )
        found = connection.scalar(text("SELECT migration.ledger_id()"))
        connection.exec_driver_sql("RESET ROLE")
        connection.exec_driver_sql("DROP OWNED BY reader; DROP ROLE reader")
    assert found == scalar(engine, ID)
