"""What exists under a name of ours is checked for what it is."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from models.errors import Incompatible, MigrationError
from models.settings import Settings
from producer.checks import check
from producer.runs import control, rollback
from producer.schema import upgrade
from tests.driving import change, go_on, scalar, whole_run

USERS = 60
pytestmark = pytest.mark.usefixtures("bare")
NOTHING = "SELECT to_regclass('public.organizations') IS NULL"
FIRST_COLUMNS = """
SELECT count(*) FROM pg_index i JOIN pg_attribute a
  ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
WHERE i.indisvalid AND i.indrelid = 'public.{table}'::regclass AND a.attname = '{column}'
"""

FOREIGN = {
    "its runs": "CREATE SCHEMA migration; CREATE TABLE migration.runs (id int)",
    "an alembic": "CREATE SCHEMA migration;"
    " CREATE TABLE migration.alembic_version (version_num varchar(32) PRIMARY KEY);"
    " INSERT INTO migration.alembic_version VALUES ('abc123')",
    "the same revision": "CREATE SCHEMA migration;"
    " CREATE TABLE migration.alembic_version (version_num varchar(32) PRIMARY KEY);"
    " INSERT INTO migration.alembic_version VALUES ('0001')",
    "a view": "CREATE SCHEMA migration; CREATE VIEW migration.history AS SELECT 1 AS one",
}
TAKEN = {
    "view": ("ai_tools", "CREATE VIEW ai_tools AS SELECT 1 AS id"),
    "sequence": ("ai_tools", "CREATE SEQUENCE ai_tools"),
    "partitioned": (
        "credit_logs",
        "CREATE TABLE credit_logs (id varchar) PARTITION BY HASH (id)",
    ),
    "materialized": ("departments", "CREATE MATERIALIZED VIEW departments AS SELECT 1 AS id"),
    "type": ("ai_suites", "CREATE TYPE ai_suites AS (id int)"),
    "domain": ("user_type", "CREATE DOMAIN user_type AS text"),
    "composite": ("billing_tier", "CREATE TYPE billing_tier AS (one int)"),
    "table": ("tool_status", "CREATE TABLE tool_status (id int)"),
    "empty": ("tool_status", "CREATE TYPE tool_status AS ENUM ()"),
    "trigger": (
        "migration_capture_rows",
        "CREATE TRIGGER migration_capture_rows BEFORE UPDATE ON users FOR EACH ROW"
        " EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    ),
}


def refused(engine: Engine, settings: Settings, word: str) -> MigrationError:
    """The refusal, which names the word and changes nothing; `check` says it too."""
    with pytest.raises(MigrationError, match=word) as caught:
        upgrade.upgrade(engine, settings)
    assert caught.value.hint
    assert scalar(engine, NOTHING)
    failed = [c.found for c in check.examine(engine, settings) if c.verdict == "failed"]
    assert any(word in found for found in failed), failed
    return caught.value


@pytest.mark.parametrize("statement", FOREIGN.values(), ids=FOREIGN)
def test_a_schema_of_somebody_else_is_refused(
    engine: Engine, settings: Settings, statement: str
) -> None:
    change(engine, statement)
    refused(engine, settings, "schema migration")


def test_an_empty_schema_of_that_name_is_taken(engine: Engine, settings: Settings) -> None:
    change(engine, "CREATE SCHEMA migration")
    assert upgrade.upgrade(engine, settings)


def test_a_newer_ledger_is_refused(engine: Engine, settings: Settings) -> None:
    upgrade.upgrade(engine, settings)
    change(engine, "UPDATE migration.alembic_version SET version_num = '9999'")
    with pytest.raises(Incompatible, match="9999"):
        upgrade.upgrade(engine, settings)


@pytest.mark.parametrize(("name", "statement"), TAKEN.values(), ids=TAKEN)
def test_a_name_of_another_kind_is_refused(
    engine: Engine, settings: Settings, name: str, statement: str
) -> None:
    change(engine, statement)
    refused(engine, settings, name)


def test_an_index_name_of_a_renamed_table_is_not_taken_for_the_index(
    engine: Engine, settings: Settings
) -> None:
    wanted = {
        "ai_tools": "suite_id",
        "ai_suites": "user_id",
        "tool_assignments": "tool_id",
        "gpt_subscriptions": "user_id",
    }
    for table, column in wanted.items():
        index = "migration_helper_subscriptions_user_id" if table == "gpt_subscriptions" else ""
        change(
            engine,
            f"CREATE TABLE old_{table} (id int PRIMARY KEY, {column} int)",
            f"CREATE INDEX {index or f'ix_{table}_{column}'} ON old_{table} ({column})",
        )
    change(engine, "DROP INDEX IF EXISTS gpt_subscriptions_user_id_idx")
    assert whole_run(engine, settings).exit_status == 3
    for table, column in list(wanted.items())[:3]:
        assert scalar(engine, FIRST_COLUMNS.format(table=table, column=column)) >= 1
        # The other table's index is still there, and not recorded as the migration's.
        assert scalar(engine, f"SELECT to_regclass('ix_{table}_{column}') IS NOT NULL")
        ours = f"SELECT count(*) FROM migration.schema_objects WHERE name = 'ix_{table}_{column}'"
        assert scalar(engine, ours) == 0
    assert scalar(
        engine, "SELECT to_regclass('migration_helper_subscriptions_user_id') IS NOT NULL"
    )
    assert scalar(engine, "SELECT to_regclass('migration_helper_subscriptions_user_id_1') IS NULL")


def test_constraints_of_somebody_else_stay(engine: Engine, settings: Settings) -> None:
    change(
        engine,
        "ALTER TABLE users ADD CONSTRAINT migration_not_null CHECK (id <> '')",
        "ALTER TABLE users ADD CONSTRAINT fk_users_organization_id CHECK (id <> '-')",
    )
    assert whole_run(engine, settings).exit_status == 3
    kept = "SELECT count(*) FROM pg_constraint WHERE contype = 'c' AND conname IN"
    assert scalar(engine, f"{kept} ('migration_not_null', 'fk_users_organization_id')") == 2
    key = "SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND conname LIKE 'fk_users_o%'"
    assert scalar(engine, key) == 1


LEFT = [
    "ALTER TABLE users ADD CONSTRAINT migration_not_null CHECK (id <> '')",
    "ALTER TABLE users ADD CONSTRAINT migration_not_null_1 CHECK (credits_balance IS NOT NULL)"
    " NOT VALID",
    "INSERT INTO migration.schema_objects (kind, table_name, name)"
    " VALUES ('constraint', 'users', 'migration_not_null_1')",
]
LEFT_NAMES = (
    "SELECT string_agg(conname, ' ') FROM pg_constraint WHERE conname LIKE 'migration_not%'"
)


def test_what_an_interruption_left_goes_whatever_its_name(
    engine: Engine, settings: Settings
) -> None:
    upgrade.upgrade(engine, settings)
    change(engine, *LEFT)
    whole_run(engine, settings)
    recorded = "SELECT count(*) FROM migration.schema_objects WHERE name LIKE 'migration_not%'"
    assert scalar(engine, LEFT_NAMES) == "migration_not_null"
    # The name is free: a later constraint of somebody else's is not taken for ours.
    assert scalar(engine, recorded) == 0


def test_what_an_interruption_left_is_not_in_the_way_of_a_rollback(
    engine: Engine, settings: Settings
) -> None:
    whole_run(engine, settings)
    change(engine, *LEFT)
    undone = rollback.start(engine, settings, None, force=False)
    assert undone and go_on(engine, settings, undone).state == "rolled_back"
    assert scalar(engine, LEFT_NAMES) == "migration_not_null"


def test_none_is_refused_where_the_table_holds_rows(engine: Engine, settings: Settings) -> None:
    none = settings.model_copy(update={"subscriptions_table": "none", "projects_table": "none"})
    refused(engine, none, "public.gpt_subscriptions holds rows")
    # Another name hides no row either, if the mapping has it.
    change(
        engine,
        "TRUNCATE projects",
        "ALTER TABLE gpt_subscriptions RENAME TO dashboard_gpt_subscriptions",
    )
    mapped = none.model_copy(update={"mapping": "today", "users_table": "users"})
    refused(engine, mapped, "public.dashboard_gpt_subscriptions holds rows")
    # Rows of other users are none of these: the run leaves them alone.
    change(
        engine,
        "CREATE TABLE others (id varchar PRIMARY KEY)",
        "INSERT INTO others SELECT DISTINCT user_id FROM dashboard_gpt_subscriptions",
        "ALTER TABLE dashboard_gpt_subscriptions RENAME TO gpt_subscriptions",
        "ALTER TABLE gpt_subscriptions ADD FOREIGN KEY (user_id) REFERENCES others",
    )
    run = whole_run(engine, none)
    assert (run.verification.differences, scalar(engine, "SELECT count(*) FROM ai_tools")) == (0, 0)


def test_a_missing_table_says_how_to_say_that_there_is_none(
    engine: Engine, settings: Settings
) -> None:
    change(engine, "DROP TABLE gpt_subscriptions")
    error = refused(engine, settings, "gpt_subscriptions does not exist")
    assert "If there is no such table: MIGRATION_SUBSCRIPTIONS_TABLE=none." in error.hint
    none = settings.model_copy(update={"subscriptions_table": "none"})
    run = whole_run(engine, none)
    assert (run.verification.differences, run.entities["users"].quarantined > 0) == (0, True)
    change(engine, "UPDATE users SET email = id::text || '@fixed.example' WHERE email IS NULL"
                   " OR btrim(email) = ''")  # fmt: skip
    control.retry(engine, none, run.run_id)
    again = go_on(engine, none, run.run_id)
    assert (again.verification.differences, again.entities["users"].quarantined) == (0, 0)
    # The ledger now belongs to a dashboard without that table.
    change(engine, "CREATE TABLE gpt_subscriptions (id varchar PRIMARY KEY, user_id varchar,"
                   " gpt_id varchar)")  # fmt: skip
    with pytest.raises(MigrationError, match=r"not to public\.users, public\.gpt_sub"):
        upgrade.upgrade(engine, settings)
