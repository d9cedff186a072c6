"""`schema downgrade` leaves the catalog as it was before the upgrade, and what is not ours."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from models.errors import NotAllowed
from models.postgres import database as databases
from models.settings import Settings
from producer.runs import control, rollback
from producer.schema import downgrade, upgrade
from tests import oracle, shapes, variants
from tests.driving import change, go_on, start, whole_run
from tests.short import short

USERS = 60
pytestmark = pytest.mark.usefixtures("bare")


def catalog(engine: Engine) -> dict[str, list[str]]:
    """Columns with defaults and NOT NULL, constraints, indexes, types, triggers, schemas."""
    queries = {
        "columns": "SELECT format('%s.%s.%s %s %s %s', table_schema, table_name, column_name,"
        " udt_name, is_nullable, column_default) FROM information_schema.columns"
        " WHERE table_schema NOT IN ('pg_catalog', 'information_schema')",
        "constraints": "SELECT conrelid::regclass || pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE connamespace = 'public'::regnamespace AND contype <> 'n'",
        "indexes": "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'",
        "types": "SELECT typname FROM pg_type WHERE typtype = 'e'",
        "triggers": "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal",
        "schemas": "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_'",
    }
    with engine.connect() as connection:
        return {
            name: sorted(map(str, connection.exec_driver_sql(query.replace("%", "%%")).scalars()))
            for name, query in queries.items()
        }


def snapshot(engine: Engine, variant: variants.Variant) -> oracle.Snapshot:
    with engine.connect() as connection:
        return oracle.snapshot(connection, variant.names)


def downgradable(engine: Engine) -> set[str]:
    """The columns that the migration added, as `table.column`."""
    query = "SELECT table_name || '.' || name FROM migration.schema_objects WHERE kind = 'column'"
    with engine.connect() as connection:
        return set(connection.scalars(text(query)))


@pytest.mark.parametrize(
    "variant", short((*variants.VARIANTS, *shapes.EACH), shapes.TODAY), ids=str
)
def test_after_a_rollback_the_schema_comes_back_as_it_was(
    database: str, settings: Settings, variant: variants.Variant
) -> None:
    engine = databases.create(database)
    settings = settings.model_copy(
        update={
            "users_table": variant.names.users,
            "subscriptions_table": variant.names.subscriptions,
            "projects_table": variant.names.projects,
            "mapping": variant.mapping,
        }
    )
    with engine.begin() as connection:
        variant.build(connection, USERS)
    before, rows = catalog(engine), snapshot(engine, variant)
    assert downgrade.downgrade(engine, settings) == []
    run_id = whole_run(engine, settings).run_id
    # Columns with a constant default have a value in every row.
    added = {name for name in downgradable(engine) if name.split(".")[0] != "users"}
    with pytest.raises(NotAllowed, match=f"Run {run_id} is not rolled back"):
        downgrade.would_lose(engine, settings)
    with pytest.raises(NotAllowed, match=f"Run {run_id} is not rolled back"):
        downgrade.downgrade(engine, settings)
    go_on(engine, settings, rollback.start(engine, settings, None, force=False))
    lost = downgrade.would_lose(engine, settings)
    ours = {"migration.runs", "migration.audit"}
    assert {name for name, count in lost.items() if count} - added == ours
    gone = downgrade.downgrade(engine, settings)
    assert ("schema", "", "migration") in gone
    assert (catalog(engine), snapshot(engine, variant)) == (before, rows)
    # And once more from the beginning.
    assert whole_run(engine, settings).verification.differences == 0
    engine.dispose()


def test_a_run_that_wrote_nothing_is_not_in_the_way_and_an_open_one_is(
    engine: Engine, settings: Settings
) -> None:
    before = catalog(engine)
    run_id = start(engine, settings)
    with pytest.raises(NotAllowed, match=f"Run {run_id} is preparing"):
        downgrade.downgrade(engine, settings)
    control.cancel(engine, run_id)
    assert downgrade.downgrade(engine, settings)
    assert catalog(engine) == before


def test_what_would_be_lost_is_counted(engine: Engine, settings: Settings) -> None:
    upgrade.upgrade(engine, settings)
    change(
        engine,
        "INSERT INTO organizations (id, name, subscription_tier) VALUES ('x', 'Mine', 'free')",
        "UPDATE users SET billing_tier = 'premium'",
    )
    lost = downgrade.would_lose(engine, settings)
    assert (lost["organizations"], lost["users.billing_tier"], lost["ai_tools"]) == (1, USERS, 0)


def test_an_object_of_somebody_else_is_not_dropped_with_it(
    engine: Engine, settings: Settings
) -> None:
    upgrade.upgrade(engine, settings)
    change(engine, "CREATE VIEW tools AS SELECT name FROM ai_tools")
    before = catalog(engine)
    with pytest.raises(NotAllowed, match="ai_tools") as refused:
        downgrade.downgrade(engine, settings)
    assert "Nothing was changed" in refused.value.hint
    assert catalog(engine) == before
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM tools")) == 0
