"""What a role, a database, an address or the environment sets decides nothing about a run.

Every run here has live writes in its middle, and is judged by the oracle.
"""

from __future__ import annotations

import io
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from models.postgres import database as databases
from models.postgres import limited, sessions
from models.postgres.database import transaction
from models.settings import DEFAULT_GRANTS, Settings, parse_grants
from producer.demo import sample
from producer.embedded import Servers
from tests import oracle, variants
from tests.application import Application
from tests.conftest import fresh_database
from tests.driving import change, go_on, scalar, start, wait_for_lock
from tests.short import short
from tests.wait import until

USERS, BATCH_SIZE = 60, 20
GRANTS = parse_grants(DEFAULT_GRANTS)

# A schema before PostgreSQL's own, with functions and an operator that answer wrongly.
HIJACK = (
    "CREATE SCHEMA odd",
    "CREATE FUNCTION odd.lower(text) RETURNS text LANGUAGE sql AS 'SELECT ''admin''::text'",
    "CREATE FUNCTION odd.btrim(text, text) RETURNS text LANGUAGE sql AS 'SELECT ''''::text'",
    "CREATE FUNCTION odd.yes(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT true'",
    "CREATE OPERATOR odd.<> (LEFTARG = text, RIGHTARG = text, FUNCTION = odd.yes)",
)
# By what they disturb; the names of the settings must exist on PostgreSQL 12.
DEFAULTS = {
    "repeatable read": {"default_transaction_isolation": "repeatable read"},
    "serializable": {
        "default_transaction_isolation": "serializable",
        "default_transaction_deferrable": "on",
    },
    "texts": {
        "DateStyle": "German, DMY",
        "TimeZone": "Asia/Kolkata",
        "IntervalStyle": "sql_standard",
        "bytea_output": "escape",
        "extra_float_digits": "-15",
        "quote_all_identifiers": "on",
        "transform_null_equals": "on",
        "array_nulls": "off",
        "standard_conforming_strings": "off",
        "client_encoding": "LATIN1",
    },
    "limits": {
        "statement_timeout": "150ms",
        "lock_timeout": "150ms",
        "idle_in_transaction_session_timeout": "1s",
        "exit_on_error": "on",
        "row_security": "off",
    },
    "path": {"search_path": "odd, public, pg_catalog"},
}


def judged(engine: Engine, settings: Settings, worker: Engine | None = None) -> None:
    """A run with live writes until the last lock, by the worker's engine: its end is right."""
    with engine.connect() as connection:
        before = oracle.snapshot(connection, oracle.Names())
    application = Application(engine, seed=11)

    def write(stage: str) -> None:
        if stage != "finish":
            for _ in range(3):
                application.write()

    worker = worker or engine
    ended = go_on(worker, settings, start(worker, settings), before=write)
    assert application.refused == []
    assert (ended.exit_status, ended.differences) == (3, {}), ended.error
    with engine.connect() as connection:
        assert oracle.compare_now(connection, before, GRANTS) == []


@contextmanager
def role(engine: Engine, address: str, defaults: dict[str, str]) -> Iterator[Engine]:
    """An engine of a role with these defaults."""
    name = f"worker_{uuid.uuid4().hex}"
    change(engine, f"CREATE ROLE {name} SUPERUSER LOGIN",
           *(f"ALTER ROLE {name} SET {key} TO {value}" if key == "search_path"
             else f"ALTER ROLE {name} SET {key} TO '{value}'"
             for key, value in defaults.items()))  # fmt: skip
    its = databases.create(address.replace("://postgres@", f"://{name}@"))
    try:
        yield its
    finally:
        its.dispose()
        change(engine, f"REASSIGN OWNED BY {name} TO CURRENT_USER", f"DROP ROLE {name}")


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("name", short(DEFAULTS, *(DEFAULTS.keys() - {"repeatable read"})))
def test_no_default_of_a_role_decides_how_a_run_ends(
    engine: Engine, settings: Settings, database: str, name: str
) -> None:
    change(engine, *HIJACK)
    # A backslash, where the role's literals take it for an escape.
    change(engine, "UPDATE users SET email = 'a\\b' || email WHERE email LIKE '%@%'")
    with role(engine, database, DEFAULTS[name]) as worker:
        judged(engine, settings, worker)


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_write_that_ends_while_the_last_lock_waits_for_it_is_taken_up(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    from worker import cutover

    name = engine.url.database
    change(engine, f"ALTER DATABASE {name} SET default_transaction_isolation = '{level}'")
    engine.dispose()
    with engine.connect() as connection:
        before = oracle.snapshot(connection, oracle.Names())
    writer = engine.connect()
    written: list[str] = []

    def commit() -> None:
        wait_for_lock(engine)
        writer.commit()

    def lock(context: object) -> None:
        if not written:
            key = scalar(engine, "SELECT min(user_id) FROM ai_suites")
            written.append(key)
            writer.execute(text(f"UPDATE users SET email = 'late@ex.example' WHERE id = '{key}'"))
            thread = threading.Thread(target=commit, daemon=True)
            thread.start()
            try:
                real(context)  # type: ignore[arg-type]
            finally:
                thread.join()
        else:
            real(context)  # type: ignore[arg-type]

    real = cutover.lock
    monkeypatch.setattr(cutover, "lock", lock)
    try:
        ended = go_on(engine, settings, start(engine, settings))
    finally:
        writer.close()
    assert written and (ended.exit_status, ended.differences) == (3, {})
    assert scalar(engine, "SELECT count(*) FROM ai_suites WHERE name = 'late@ex.example''s Suite'")
    assert scalar(engine, "SELECT count(*) FROM migration.changes") == 0
    with engine.connect() as connection:
        assert oracle.compare_now(connection, before, GRANTS) == []


LETTERS = {"LATIN1": "é\u00a0ß", "WIN1252": "€\u00a0ß", "EUC_JP": "京\u3000都", "SQL_ASCII": "a b"}


@pytest.mark.parametrize("encoding", short(LETTERS, "EUC_JP"))
def test_a_run_ends_right_in_a_database_of_any_encoding(
    servers: Servers, settings: Settings, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    real = sample._Stream
    monkeypatch.setattr(
        sample, "_Stream", lambda lines: real(x.encode("ascii", "ignore").decode() for x in lines)
    )
    options = f"ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
    with fresh_database(servers.database_url, template="template0", options=options) as url:
        engine = databases.create(url)
        with engine.begin() as connection:
            variants.PLAIN.build(connection, USERS)
        # Escapes that the encoding has no letter for are quarantined, as the check says.
        change(
            engine,
            """UPDATE gpt_subscriptions SET preferences = '{"plain": true}'
                          WHERE strpos(preferences::text, chr(92) || 'u') > 0""",
        )
        # White space of this encoding is white space, and its other letters stay.
        letters = LETTERS[encoding]
        change(engine, f"UPDATE users SET email = '{letters}' || email WHERE email LIKE '%@%'",
               f"UPDATE users SET email = '{letters[1]}' WHERE id = (SELECT max(id) FROM users)",
               f"UPDATE gpt_subscriptions SET gpt_id = '{letters}' || gpt_id")  # fmt: skip
        try:
            judged(engine, settings)
        finally:
            engine.dispose()


def test_every_encoding_of_a_server_takes_the_blanks_that_fit_it(servers: Servers) -> None:
    # Without MULE_INTERNAL: it has no conversion to UTF8, and the server refuses the login.
    names = "EUC_CN EUC_JP EUC_JIS_2004 EUC_KR EUC_TW ISO_8859_5 ISO_8859_6 ISO_8859_7 ISO_8859_8"
    names += " KOI8R KOI8U LATIN2 LATIN3 LATIN4 LATIN5 LATIN6 LATIN7 LATIN8 LATIN9 LATIN10"
    names += " SQL_ASCII UTF8 WIN866 WIN874 WIN1250 WIN1251 WIN1252 WIN1253 WIN1254"
    names += " WIN1255 WIN1256 WIN1257 WIN1258"
    for name in names.split():
        options = f"ENCODING '{name}' LC_COLLATE 'C' LC_CTYPE 'C'"
        with fresh_database(servers.database_url, template="template0", options=options) as url:
            engine = databases.create(url)
            with transaction(engine) as connection:
                blanks = sessions.blanks(connection)
                left = connection.scalar(text("SELECT btrim(:blanks, :blanks)"), {"blanks": blanks})
            engine.dispose()
        assert (name, left) == (name, "") and set(" \t\n") <= set(blanks)


def test_an_encoding_of_the_environment_decides_nothing(
    database: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "PGCLIENTENCODING": "latin1",
        "PGOPTIONS": "-c default_transaction_isolation=serializable -c client_encoding=latin1",
        "PGTZ": "Asia/Tokyo",
        "PGDATESTYLE": "SQL, DMY",
    }.items():
        monkeypatch.setenv(name, value)
    engine = databases.create(database)
    with engine.begin() as connection:
        variants.PLAIN.build(connection, USERS)
    judged(engine, settings)
    engine.dispose()


def test_a_transaction_has_the_settings_that_it_needs(engine: Engine, database: str) -> None:
    change(engine, *HIJACK)
    odd = {key: value for each in DEFAULTS.values() for key, value in each.items()}
    with role(engine, database, odd) as worker, transaction(worker) as connection:
        shown = {
            name: connection.scalar(text(f"SHOW {name}"))
            for name in (*odd, "transaction_isolation")
        }
        differs = connection.scalar(text("SELECT 'a'::text <> 'a'::text"))
    assert shown["transaction_isolation"] == "read committed"
    assert shown["search_path"] == "pg_catalog, odd, public, pg_catalog, pg_temp"
    assert (shown["DateStyle"], shown["TimeZone"]) == ("ISO, YMD", "UTC")
    assert (shown["statement_timeout"], shown["client_encoding"]) == ("1min", "UTF8")
    assert shown["exit_on_error"] == "off" and differs is False
    with transaction(engine) as connection:
        path = connection.scalar(text("SHOW search_path"))
    assert path == '"$user", public, pg_temp'


@pytest.mark.usefixtures("bare")
def test_a_read_only_default_is_named(engine: Engine, settings: Settings, database: str) -> None:
    with (
        role(engine, database, {"default_transaction_read_only": "on"}) as worker,
        pytest.raises(databases.Transient) as refused,
        databases.as_ours(),
    ):
        start(worker, settings)
    assert "default_transaction_read_only" in refused.value.hint


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is sent to the server in a round trip each, but for COPY."""
    found: list[str] = []
    execute = limited.Cursor.execute

    def note(cursor: limited.Cursor, query: str, values: Any = None) -> None:
        found.append(query)
        execute(cursor, query, values)

    monkeypatch.setattr(limited.Cursor, "execute", note)
    return found


def test_a_transaction_begins_with_its_first_statement(engine: Engine, asked: list[str]) -> None:
    with transaction(engine):
        pass
    asked.clear()
    with transaction(engine):
        pass
    assert asked == []
    with transaction(engine) as connection:
        # A literal percent sign, with values and without.
        assert connection.scalar(text("SELECT 5 % :three"), {"three": 3}) == 2
        assert connection.exec_driver_sql("SELECT 5 %% 3").scalar() == 2
    assert len(asked) == 3 and asked[-1] == "COMMIT"


def test_a_savepoint_goes_with_the_next_statement(engine: Engine) -> None:
    # Not this word itself.
    sent = "SELECT current_query() LIKE '%SAVE' || 'POINT%'"
    with transaction(engine) as connection:
        with connection.begin_nested():
            assert scalar_of(connection, sent)
        with pytest.raises(DBAPIError), connection.begin_nested():
            connection.execute(text("SELECT 1 / 0"))
        with pytest.raises(ZeroDivisionError), connection.begin_nested():
            raise ZeroDivisionError
        assert not scalar_of(connection, sent)
        # Neither its beginning nor its end is left for the next transaction.
        with connection.begin_nested():
            pass
    with transaction(engine) as connection:
        assert not scalar_of(connection, sent)


@pytest.mark.parametrize("first", ["COPY", "many", "savepoint", "refused"])
def test_whatever_comes_first_is_part_of_the_transaction(engine: Engine, first: str) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE part (n int PRIMARY KEY)"))

    def do(connection: Connection) -> None:
        with connection.connection.cursor() as cursor:
            if first == "COPY":
                cursor.copy_expert("COPY part FROM STDIN", io.StringIO("1\n"))
            elif first == "many":
                cursor.executemany("INSERT INTO part VALUES (%s)", [(1,), (2,)])
        if first == "savepoint":
            with connection.begin_nested():
                connection.execute(text("INSERT INTO part VALUES (1)"))
        if first == "refused":
            connection.execute(text("INSERT INTO part VALUES (1), (1)"))

    with pytest.raises((ZeroDivisionError, IntegrityError)), transaction(engine) as connection:
        do(connection)
        assert scalar(engine, "SELECT count(*) FROM part") == 0
        raise ZeroDivisionError
    assert scalar(engine, "SELECT count(*) FROM part") == 0
    if first != "refused":
        with transaction(engine) as connection:
            do(connection)
        assert scalar(engine, "SELECT count(*) FROM part") > 0
    # The driver's own transactions are as before.
    with pytest.raises(ZeroDivisionError), engine.begin() as connection:
        connection.execute(text("DELETE FROM part"))
        connection.execute(text("INSERT INTO part VALUES (9)"))
        raise ZeroDivisionError
    assert scalar(engine, "SELECT count(*) FROM part WHERE n = 9") == 0


def test_a_connection_that_broke_while_it_rested_is_replaced(
    engine: Engine, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with transaction(engine) as connection:
        before = connection.scalar(text("SELECT pg_backend_pid()"))
    another = databases.create(database)
    assert scalar(another, f"SELECT pg_terminate_backend({before})")
    is_there = f"SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = {before})"
    until(lambda: not scalar(another, is_there))
    another.dispose()
    monkeypatch.setattr(databases, "RESTED_SECONDS", 0.0)
    with transaction(engine) as connection:
        assert connection.scalar(text("SELECT pg_backend_pid()")) != before


def test_what_goes_with_the_next_statement_does_not_keep_a_failed_transaction(
    engine: Engine,
) -> None:
    with transaction(engine) as connection:
        driver: Any = connection.connection.dbapi_connection
        with pytest.raises(DBAPIError), connection.begin_nested():
            driver.precede("SET LOCAL statement_timeout = 12345")
            assert scalar_of(connection, "SHOW statement_timeout") == "12345ms"
            try:
                connection.execute(text("SELECT 1 / 0"))
            finally:
                # The next statement is the rollback to the savepoint.
                driver.precede("SET LOCAL statement_timeout = 1")
        assert scalar_of(connection, "SHOW statement_timeout") == "1min"


def scalar_of(connection: Connection, query: str) -> Any:
    return connection.scalar(text(query))
