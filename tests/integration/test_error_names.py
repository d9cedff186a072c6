"""Errors of PostgreSQL are told by code and names; their texts, which may quote rows, are not."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg2
import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from models.errors import BadRow, MigrationError, Misconfigured, Transient, Unreachable
from models.postgres import database as databases
from models.postgres import refusals
from models.postgres.database import classify

SECRET = "geheim@example.org"


@pytest.fixture
def engine(database: str) -> Iterator[Engine]:
    engine = databases.create(database)
    yield engine
    engine.dispose()


def error(engine: Engine, *statements: str) -> MigrationError:
    """What the last statement's error becomes."""
    with engine.connect() as connection, connection.begin():
        for statement in statements[:-1]:
            connection.exec_driver_sql(statement)
        with pytest.raises(DBAPIError) as failed:
            connection.exec_driver_sql(statements[-1])
    found = classify(failed.value)
    assert SECRET not in found.message + found.hint
    return found


def test_constraint_table_and_column_are_named(engine: Engine) -> None:
    table = (
        "CREATE TABLE t (email text NOT NULL CONSTRAINT t_name_key UNIQUE,"
        " n integer CONSTRAINT few CHECK (n < 3))"
    )
    row = f"INSERT INTO t VALUES ('{SECRET}', 1)"
    found = error(engine, table, row, row)
    assert isinstance(found, BadRow)
    assert found.message == "UniqueViolation (23505), constraint t_name_key on public.t"
    assert (found.sqlstate, found.constraint, found.table) == ("23505", "t_name_key", "public.t")
    checked = error(engine, table, f"INSERT INTO t VALUES ('{SECRET}', 7)")
    assert checked.message == "CheckViolation (23514), constraint few on public.t"
    missing = error(engine, table, "INSERT INTO t VALUES (NULL, 1)")
    assert missing.message == "NotNullViolation (23502), column email of public.t"
    value = error(engine, table, f"INSERT INTO t SELECT '', '{SECRET}'::integer")
    assert value.message == "InvalidTextRepresentation (22P02)"


def test_of_what_a_function_raises_its_name_is_shown_alone(engine: Engine) -> None:
    function = (
        'CREATE FUNCTION "Refuse it"() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN'
        " RAISE EXCEPTION 'not %%', NEW.email USING ERRCODE = '{code}', CONSTRAINT = NEW.email,"
        " TABLE = NEW.email, COLUMN = NEW.email, HINT = NEW.email; END $$"
    )
    trigger = 'CREATE TRIGGER x BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION "Refuse it"()'
    for code in ("P0001", "23505", "42501", "25006", "57014"):
        found = error(
            engine,
            "CREATE TABLE t (email text)",
            function.replace("{code}", code),
            trigger,
            f"INSERT INTO t VALUES ('{SECRET}')",
        )
        assert 'in function "Refuse it"' in found.message, found.message


def test_what_is_missing_is_named(engine: Engine) -> None:
    found = error(engine, "SELECT absent FROM pg_class")
    assert isinstance(found, Misconfigured) and found.hint
    assert 'column "absent" does not exist' in found.message
    broken = error(engine, f"SELECT FROM '{SECRET}'")
    assert "SyntaxError (42601)" in broken.message


def test_ddl_that_an_event_trigger_forbids_names_its_function(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE FUNCTION no_ddl() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN"
            f" RAISE EXCEPTION 'frozen by {SECRET}'; END $$"
        )
        connection.exec_driver_sql(
            "CREATE EVENT TRIGGER no_ddl ON ddl_command_start EXECUTE FUNCTION no_ddl()"
        )
    for statement in ("CREATE TABLE t ()", "SET LOCAL lock_timeout = 1; DROP TABLE IF EXISTS t"):
        found = error(engine, statement)
        assert isinstance(found, Misconfigured)
        assert "in function no_ddl" in found.message
        assert "event trigger" in found.hint


def test_a_database_that_takes_no_writes_says_so(engine: Engine) -> None:
    found = error(engine, "SET TRANSACTION READ ONLY", "CREATE TABLE t ()")
    assert isinstance(found, Transient)
    assert "accepts no writes" in found.message
    assert "default_transaction_read_only" in found.hint


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("postgres@", "nobody@"), "the role does not exist"),
        (("/test_", "/gone_"), "the database does not exist"),
        (("host=", "host=/gone"), "no server listens on that socket"),
        (("?host=", "?port=1&host="), "no server listens on that socket"),
    ],
)
def test_why_a_connection_fails_is_said_with_its_place(
    database: str, change: tuple[str, str], words: str
) -> None:
    broken = databases.create(database.replace(*change))
    with pytest.raises(Unreachable, match=words) as refused:
        databases.check_reachable(broken)
    assert "@" in refused.value.message and "DATABASE_URL" in refused.value.hint


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://me@127.0.0.1:1,127.0.0.1:2/d", "me@127.0.0.1:1,127.0.0.1:2/d"),
        ("postgresql://me@no-such-host.invalid/d", "the host's name is unknown"),
    ],
)
def test_hosts_that_do_not_answer_are_listed(url: str, words: str) -> None:
    with pytest.raises(Unreachable, match=words):
        databases.check_reachable(databases.create(url))


def test_an_error_that_nobody_knows_is_told_by_its_type() -> None:
    found = refusals.of_connecting(psycopg2.OperationalError(SECRET))
    assert found == "the connection fails (OperationalError)"
