"""The schema step: idempotent, complete, and the migrated schema is the declared one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, text

from models.engine import current
from models.engine.schema import target
from models.ledger import tables as ledger
from models.postgres import database as databases
from models.settings import Settings
from producer.schema import upgrade
from tests import variants

SETTINGS = Settings.model_construct(
    users_table="users", subscriptions_table="gpt_subscriptions", projects_table="projects"
)


@pytest.fixture
def engine(database: str) -> Iterator[Engine]:
    engine = databases.create(database)
    yield engine
    engine.dispose()


def test_a_second_upgrade_adds_nothing(engine: Engine) -> None:
    with engine.begin() as connection:
        variants.PLAIN.build(connection, 1)
    assert ("table", "ai_tools", "ai_tools") in upgrade.upgrade(engine, SETTINGS)
    assert upgrade.upgrade(engine, SETTINGS) == []


def test_what_the_application_dropped_comes_back(engine: Engine) -> None:
    with engine.begin() as connection:
        variants.PLAIN.build(connection, 1)
    upgrade.upgrade(engine, SETTINGS)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE marketplace_listings"))
        connection.execute(text("ALTER TABLE users DROP COLUMN last_login"))
    assert upgrade.upgrade(engine, SETTINGS) == [
        ("table", "marketplace_listings", "marketplace_listings"),
        ("column", "users", "last_login"),
    ]


def test_the_migrated_ledger_is_the_declared_one(engine: Engine) -> None:
    with engine.begin() as connection:
        variants.PLAIN.build(connection, 1)
    upgrade.upgrade(engine, SETTINGS)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "include_schemas": True,
                "version_table_schema": ledger.SCHEMA,
                "compare_type": True,
                "compare_server_default": True,
                "include_name": lambda name, kind, _: kind != "schema" or name == ledger.SCHEMA,
            },
        )
        assert compare_metadata(context, ledger.metadata) == []


@pytest.mark.parametrize("variant", variants.EACH)
def test_every_declared_column_exists_with_a_type_that_fits(
    engine: Engine, variant: variants.Variant
) -> None:
    settings = Settings.model_construct(
        users_table=variant.names.users,
        subscriptions_table=variant.names.subscriptions,
        projects_table=variant.names.projects,
    )
    with engine.begin() as connection:
        variant.build(connection, 1)
    upgrade.upgrade(engine, settings)
    with engine.connect() as connection:
        tables = current.migration().read(connection, settings)
        schema = current.migration().schema
        found = target.of(schema, tables)
        assert list(target.examine(connection, schema, tables, found)) == []
        for declared in schema.declare(tables).tables.values():
            missing = set(declared.columns.keys()) - set(found.table(declared.name).columns)
            assert not missing, (declared.name, missing)


def test_the_dashboards_own_alembic_version_is_not_touched(engine: Engine) -> None:
    with engine.begin() as connection:
        variants.PLAIN.build(connection, 1)
        connection.execute(text("CREATE TABLE alembic_version (version_num varchar(32))"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('theirs')"))
    upgrade.upgrade(engine, SETTINGS)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "theirs"
        assert connection.scalar(text("SELECT version_num FROM migration.alembic_version"))


def test_a_locked_table_is_waited_for_and_then_upgraded(engine: Engine) -> None:
    with engine.begin() as connection:
        variants.PLAIN.build(connection, 1)
    with engine.begin() as reader:
        reader.execute(text("SELECT count(*) FROM users"))
        with pytest.raises(sa.exc.DBAPIError) as refused:
            upgrade._upgrade(engine, SETTINGS)
    assert databases.sqlstate(refused.value) == "55P03"
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT to_regclass('ai_tools')")) is None
    assert upgrade.upgrade(engine, SETTINGS)
