"""Bad input ends with a message that names what is wrong, the right status, and nothing changed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from tests import variants
from tests.acceptance.conftest import ROOT, Ended, Product


@pytest.fixture
def loaded(product: Product) -> Iterator[Product]:
    """A legacy database of a hundred users; whatever the test does, its catalog must not change."""
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, 100)
    before = catalog(product)
    yield product
    assert catalog(product) == before


def catalog(product: Product) -> list[str]:
    with product.engine.connect() as connection:
        return list(
            connection.scalars(
                text(
                    "SELECT n.nspname || '.' || c.relname || '.' || coalesce(a.attname, '')"
                    " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
                    " LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0"
                    " WHERE n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'"
                    " ORDER BY 1"
                )
            )
        )


def assert_refused(ended: Ended, status: int, *words: str) -> None:
    assert ended.status == status, ended.err
    error = ended.json["error"]
    for word in words:
        assert word in f"{error['message']} {error['hint']}", error
    assert error["hint"]
    assert "Traceback" not in ended.err
    assert "run_id" not in ended.json or ended.json["run_id"] is None


def test_an_unreachable_database(loaded: Product) -> None:
    url = "postgresql://somebody:secret-word@127.0.0.1:1/nowhere"
    ended = loaded.run("enqueue-all", "--json", DATABASE_URL=url)
    assert_refused(ended, 1, "database cannot be reached", "DATABASE_URL")
    assert "secret-word" not in ended.out + ended.err


def test_an_unreachable_redis(loaded: Product) -> None:
    ended = loaded.run("enqueue-all", "--json", REDIS_URL="redis://127.0.0.1:1/0")
    assert_refused(ended, 1, "Redis cannot be reached", "REDIS_URL")


def test_only_one_address_set(loaded: Product) -> None:
    assert_refused(loaded.run("enqueue-all", "--json", REDIS_URL=""), 2, "REDIS_URL", "missing")
    assert_refused(loaded.run("enqueue-all", "--json", DATABASE_URL=""), 2, "DATABASE_URL")


def test_a_wrong_password_for_the_database(loaded: Product) -> None:
    with loaded.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        rules = Path(str(connection.scalar(text("SHOW hba_file"))))
        kept = rules.read_text()
        connection.execute(text("CREATE ROLE locked LOGIN PASSWORD 'right'"))
        try:
            rules.write_text("local all locked scram-sha-256\n" + kept)
            connection.execute(text("SELECT pg_reload_conf()"))
            url = make_url(loaded.environment["DATABASE_URL"])
            wrong = url.set(username="locked", password="wrong-word")
            ended = loaded.run(
                "enqueue-all", "--json", DATABASE_URL=wrong.render_as_string(hide_password=False)
            )
        finally:
            rules.write_text(kept)
            connection.execute(text("SELECT pg_reload_conf()"))
            connection.execute(text("DROP ROLE locked"))
    assert_refused(ended, 1, "password authentication failed", "DATABASE_URL")
    assert "wrong-word" not in ended.out + ended.err


def test_a_wrong_password_for_redis(loaded: Product) -> None:
    url = loaded.environment["REDIS_URL"].replace("unix://", "unix://nobody:wrong-word@")
    ended = loaded.run("enqueue-all", "--json", REDIS_URL=url)
    assert_refused(ended, 1, "Redis cannot be reached", "REDIS_URL")
    assert "wrong-word" not in ended.out + ended.err


def test_a_table_that_is_missing(loaded: Product) -> None:
    ended = loaded.run("enqueue-all", "--json", MIGRATION_PROJECTS_TABLE="undertakings")
    assert_refused(ended, 2, "undertakings", "MIGRATION_PROJECTS_TABLE")


def test_a_table_that_lacks_id(loaded: Product) -> None:
    with loaded.engine.begin() as connection:
        connection.execute(text("CREATE TABLE nameless (email text)"))
    try:
        ended = loaded.run("enqueue-all", "--json", MIGRATION_USERS_TABLE="nameless")
        assert_refused(ended, 1, "nameless", "no column id")
    finally:
        with loaded.engine.begin() as connection:
            connection.execute(text("DROP TABLE nameless"))


def test_an_unknown_run(loaded: Product) -> None:
    assert_refused(loaded.run("status", "1999", "--json"), 2, "No run yet", "enqueue-all")


@pytest.mark.parametrize("size", ["0", "-1", "many", "1000000"])
def test_a_batch_size_that_makes_no_sense(loaded: Product, size: str) -> None:
    ended = loaded.run("enqueue-all", "--json", MIGRATION_BATCH_SIZE=size)
    assert_refused(ended, 2, "MIGRATION_BATCH_SIZE", "100000")


@pytest.mark.parametrize("grants", ["student", "student=ten,*=1", "student=1", "*=0.001", "*=-1"])
def test_grants_that_make_no_sense(loaded: Product, grants: str) -> None:
    ended = loaded.run("enqueue-all", "--json", MIGRATION_CREDIT_GRANTS=grants)
    assert_refused(ended, 2, "MIGRATION_CREDIT_GRANTS")


def test_a_role_without_privileges_is_told_which(loaded: Product) -> None:
    with loaded.engine.begin() as connection:
        connection.execute(text("CREATE ROLE reader LOGIN"))
        connection.execute(text("GRANT SELECT ON users, projects TO reader"))
    try:
        url = make_url(loaded.environment["DATABASE_URL"]).set(username="reader")
        ended = loaded.run(
            "enqueue-all", "--json", DATABASE_URL=url.render_as_string(hide_password=False)
        )
    finally:
        with loaded.engine.begin() as connection:
            connection.execute(text("DROP OWNED BY reader"))
            connection.execute(text("DROP ROLE reader"))
    assert_refused(
        ended,
        1,
        "reader",
        "CREATE on the database",
        "CREATE on schema public",
        "ownership of public.users",
        "ownership of public.gpt_subscriptions",
        "ownership of public.projects",
        "SELECT on public.gpt_subscriptions",
    )


def test_a_target_table_that_cannot_be_adopted(loaded: Product) -> None:
    with loaded.engine.begin() as connection:
        connection.execute(
            text(
                "CREATE TABLE credit_logs (id varchar PRIMARY KEY, user_id varchar,"
                " operation varchar, amount double precision, balance_after numeric(10,2),"
                " reason varchar, run_id varchar, created_at timestamp)"
            )
        )
    try:
        ended = loaded.run("schema", "upgrade", "--json")
        assert_refused(
            ended,
            1,
            "public.credit_logs.amount: expected numeric(10, 2), found double precision",
        )
        assert not any(name.startswith("migration.") for name in catalog(loaded))
    finally:
        with loaded.engine.begin() as connection:
            connection.execute(text("DROP TABLE credit_logs"))


def test_an_id_that_is_not_unique(loaded: Product) -> None:
    with loaded.engine.begin() as connection:
        connection.execute(text("ALTER TABLE projects DROP CONSTRAINT projects_pkey"))
    try:
        ended = loaded.run("enqueue-all", "--json")
        assert_refused(ended, 1, "public.projects.id must be unique and not null", "PRIMARY KEY")
    finally:
        with loaded.engine.begin() as connection:
            connection.execute(text("ALTER TABLE projects ADD PRIMARY KEY (id)"))


def test_wrong_usage_is_status_2(loaded: Product) -> None:
    assert loaded.run("enqueue-everything").status == 2
    assert loaded.run("demo", "--users", "0").status == 2
    ended = loaded.run("status", "--no-such-option", "--json")
    assert (ended.status, ended.json["error"]["kind"]) == (2, "usage")


def test_cancel_without_a_terminal_asks_for_yes(loaded: Product) -> None:
    assert_refused(loaded.run("cancel", "--json"), 2, "--yes")


def test_a_database_that_forbids_ddl_names_the_function(loaded: Product) -> None:
    with loaded.engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE FUNCTION no_ddl() RETURNS event_trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'secret-word'; END $$;"
            "CREATE EVENT TRIGGER no_ddl ON ddl_command_start EXECUTE FUNCTION no_ddl()"
        )
    for words in (("schema", "upgrade"), ("enqueue-all",)):
        ended = loaded.run(*words, "--json", "--debug")
        assert_refused(ended, 2, "no_ddl", "event trigger")
        assert "secret-word" not in ended.out + ended.err


def test_a_database_that_takes_no_writes(loaded: Product) -> None:
    with loaded.engine.begin() as connection:
        name = connection.scalar(text("SELECT current_database()"))
        connection.exec_driver_sql(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    ended = loaded.run("enqueue-all", "--json")
    assert_refused(ended, 1, "accepts no writes", "default_transaction_read_only")


def test_a_name_of_no_setting_is_warned_of(loaded: Product) -> None:
    ended = loaded.run("status", "--json", MIGRATION_BATCHSIZE="5")
    assert "MIGRATION_BATCHSIZE is not a setting: did you mean MIGRATION_BATCH_SIZE?" in ended.err


def test_all_wrong_settings_are_said_at_once(loaded: Product) -> None:
    wrong = {"MIGRATION_BATCH_SIZE": "0", "MIGRATION_THROTTLE": "x", "REDIS_URL": "amqp://h"}
    assert_refused(loaded.run("enqueue-all", "--json", **wrong), 2, *wrong)


@pytest.mark.parametrize("role", ["USERS", "SUBSCRIPTIONS", "PROJECTS"])
def test_the_name_of_a_table_that_is_empty_was_forgotten(loaded: Product, role: str) -> None:
    variable = f"MIGRATION_{role}_TABLE"
    assert_refused(loaded.run("check", "--json", **{variable: ""}), 2, variable, "is empty")


def test_a_home_that_cannot_be_made_is_named(loaded: Product, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    home = str(tmp_path / "file" / "home")
    ended = loaded.run(
        "demo", "--json", "--users", "10", MIGRATION_HOME=home, DATABASE_URL="", REDIS_URL=""
    )
    assert ended.status in (1, 2)
    assert "MIGRATION_HOME" in str(ended.json["error"]), ended.err
    assert "should not have happened" not in ended.err


def test_a_folder_with_other_models_is_named_and_no_traceback_shown(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models/__init__.py").touch()
    ended = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "worker", "worker"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "another package models" in ended.stderr and "Traceback" not in ended.stderr
