"""Connections: address, timeouts, and what each PostgreSQL error means for the caller."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg2
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, InvalidatePoolError

from models.errors import (
    BadRow,
    Incompatible,
    MigrationError,
    Misconfigured,
    TooBig,
    Transient,
    Unreachable,
)
from models.postgres import addresses, limited, refusals, sessions

T = TypeVar("T")

OLDEST_SERVER = 120000
STATEMENT_TIMEOUT_MS = 60_000
LOCK_TIMEOUT_MS = 2_000
# Below PostgreSQL's deadlock_timeout of a second: it is never the application that has to yield.
LOCK_MS = 600
LOCK_ATTEMPTS = 30
# Sessions come and go: a command waits so long for a free slot.
SLOT_SECONDS, SLOT_PAUSE_SECONDS = 5.0, 0.5
# A connection that was used so lately is not asked whether it still works.
RESTED_SECONDS = 1.0
_ADDRESS = "Check DATABASE_URL: host, port, database, user and password."
_FULL = (
    "Stop some workers, raise max_connections or the role's CONNECTION LIMIT, or use a role with"
    " pg_use_reserved_connections (PostgreSQL 16) for commands."
)
LOCKED = (
    "Look for long transactions in pg_stat_activity, and for forgotten prepared ones in"
    " pg_prepared_xacts (ROLLBACK PREPARED 'gid'); end them, then run the command again."
)

# https://www.postgresql.org/docs/current/errcodes-appendix.html
# Transient: 08 connection, 40 rollback, 55P03 lock, 57P.. shutdown, 25.. idle or read-only (a
# failover), 53100 disk, 53300 connections, 58 the system around PostgreSQL.
_TRANSIENT = ("08", "40", "55P03", "57P0", "25P03", "25P04", "25006", "53100", "53300", "58")
# A table or a column that is not there: the ledger may be of an older version.
_NO_SUCH_NAME = ("42P01", "42703")
_TOO_BIG = ("57014", "53200", "53400", "54")
# Data, constraints, and what functions and triggers raise. Anything else (an undefined column, a
# missing privilege, …) fails every row alike: quarantining them one by one would hide a wrong
# schema behind a million bad rows.
_BAD_ROW = ("21", "22", "23", "38", "39", "44", "P0", "XX000")


def create(url: str, *, application: str = "migration") -> Engine:
    """An engine for any `postgres://` or `postgresql://` address, driven by psycopg2.

    Keepalives, `tcp_user_timeout` and the connect timeout make a dead network show within about
    half a minute; the address can set its own. `models.postgres.limited` ends what waits for a
    server that is silent.
    The encoding is the driver's own word at login; all else that statements depend on is set by
    each transaction (`models.postgres.sessions`), so that a pooler in transaction mode can be in
    between.
    """
    try:
        given = addresses.postgresql(url)
    except ValueError as refused:
        raise Misconfigured(
            f"DATABASE_URL: {refused}",
            hint="Write it as postgresql://user:password@host:5432/database.",
        ) from None
    engine = create_engine(
        # What may be said of it: the parameters below hold the password.
        URL.create(
            "postgresql+psycopg2",
            username=given.get("user"),
            host=given.get("host"),
            database=given.get("dbname"),
        ),
        execution_options={"place": addresses.place_of(given)},
        pool_size=2,
        max_overflow=2,
        # An error of a statement would quote rows.
        hide_parameters=True,
        # Else each connection asks for it first.
        use_native_hstore=False,
        connect_args={
            "connect_timeout": 10,
            "application_name": application,
            "client_encoding": "utf8",
            "keepalives": 1,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            # Keepalives rest while sent data is not acknowledged: a host that vanished then would
            # hold a session for the kernel's quarter of an hour.
            "tcp_user_timeout": 20_000,
            "connection_factory": limited.Connection,
            "cursor_factory": limited.Cursor,
        }
        | given,
    )
    event.listen(engine, "checkout", functools.partial(_ping, engine))
    return engine


def _ping(engine: Engine, driver: Any, *_: object) -> None:
    """Ask whether a connection still works, unless it was in use a moment ago."""
    if time.monotonic() - driver.used_at >= RESTED_SECONDS:
        try:
            engine.dialect.do_ping(driver)
        except psycopg2.Error as failure:
            raise InvalidatePoolError from failure


def name_of(engine: Engine) -> str:
    """Which database an engine works on, `user@host:port/database`, without a password."""
    return str(engine.get_execution_options()["place"])


def check_reachable(engine: Engine) -> int:
    """Connect once; returns `server_version_num`. Raises Unreachable or Incompatible.

    A server without a free slot is asked again for SLOT_SECONDS.
    """
    end = time.monotonic() + SLOT_SECONDS
    while True:
        try:
            with engine.connect() as connection:
                version = int(connection.scalar(text("SHOW server_version_num")) or 0)
        except DBAPIError as failure:
            why = refusals.of_connecting(failure.orig)
            is_full = why == refusals.FULL
            if is_full and time.monotonic() < end:
                time.sleep(SLOT_PAUSE_SECONDS)
                continue
            raise Unreachable(
                f"The database cannot be reached: {why} ({name_of(engine)})",
                hint=_FULL if is_full else _ADDRESS,
            ) from None
        require_version(version)
        return version


def require_version(version: int) -> None:
    """Raise Incompatible when `server_version_num` is older than PostgreSQL 12."""
    if version < OLDEST_SERVER:
        raise Incompatible(
            f"PostgreSQL {version // 10000} is too old: the migration needs 12 or newer",
            hint="Upgrade the server, or point DATABASE_URL at a newer one.",
        )


@contextmanager
def transaction(
    engine: Engine,
    *,
    statement_timeout_ms: int = STATEMENT_TIMEOUT_MS,
    lock_timeout_ms: int = 10_000,
    idle_timeout_ms: int = 15_000,
    mode: str = sessions.READ_COMMITTED,
    also: str = "",
    is_single: bool = False,
) -> Iterator[Connection]:
    """One transaction with its settings made locally; commits at the end of the block.

    The idle limit frees the row locks of a process that froze inside the transaction. `also` are
    further settings, `SET LOCAL …`. `is_single` promises one statement, which costs one round trip:
    it is committed at once, and what fails after it undoes nothing.
    """
    with engine.begin() as connection:
        sessions.begin(
            connection,
            statement_timeout_ms=statement_timeout_ms,
            lock_timeout_ms=lock_timeout_ms,
            idle_timeout_ms=idle_timeout_ms,
            mode=mode,
            also=also,
            is_single=is_single,
        )
        yield connection


def sqlstate(error: BaseException) -> str:
    """The five-character SQLSTATE of a database error, or '' where there is none."""
    original = getattr(error, "orig", error)
    return str(getattr(original, "pgcode", None) or "")


def classify(error: DBAPIError) -> MigrationError:
    """Turn a database error into the branch that says what to do about it.

    The message holds the error's class, SQLSTATE and the names of constraint, table and function:
    PostgreSQL's own text may quote data.
    """
    found = refusals.of(error.orig)
    code = found.sqlstate
    if error.connection_invalidated or code.startswith(_TRANSIENT):
        return Transient(found.words, hint=found.hint)
    if not code and isinstance(error.orig, psycopg2.OperationalError | psycopg2.InterfaceError):
        return Transient(found.words)
    if code.startswith(_TOO_BIG):
        return TooBig(found.words)
    if code.startswith("P0") and refusals.is_ddl(error.statement):
        return Misconfigured(
            f"The database forbids the change of the schema: {found.words}",
            hint="An event trigger that calls the function forbids it: look for it in"
            " pg_event_trigger, and have it disabled for the migration"
            " (ALTER EVENT TRIGGER ... DISABLE). Nothing was changed.",
        )
    if code.startswith(_BAD_ROW):
        return BadRow(
            found.words,
            sqlstate=code,
            constraint=found.constraint,
            table=found.table,
            function=found.function,
        )
    hint = "It may lack a privilege, a table or a column: producer check names what is missing."
    if code in _NO_SUCH_NAME and "migration." in (error.statement or ""):
        hint = f"If this product was upgraded, type: producer schema upgrade. {hint}"
    return Misconfigured(
        f"The database refuses the statement itself: {found.text or found.words}", hint=hint
    )


@contextmanager
def as_ours() -> Iterator[None]:
    """Turn a database error into the branch that says what to do about it."""
    try:
        yield
    except DBAPIError as failure:
        raise classify(failure) from None


def lock_tables(connection: Connection, tables: Sequence[str]) -> None:
    """Lock tables for ALTER TABLE, all of them or, after LOCK_MS at the latest, none.

    One by one, a statement of the application could hold the second and wait for the first. After
    a second (deadlock_timeout) it would be the one that fails. The first mode blocks no writer:
    autovacuum gives way in it.
    """
    if tables:
        names = [name.replace("%", "%%") for name in tables]
        limit = connection.scalar(text("SHOW lock_timeout"))
        connection.exec_driver_sql(f"LOCK TABLE {', '.join(names)} IN SHARE UPDATE EXCLUSIVE MODE")
        end = time.monotonic() + LOCK_MS / 1000
        for name in names:
            left = max(1, int(1000 * (end - time.monotonic())))
            connection.exec_driver_sql(
                f"SET LOCAL lock_timeout = {left}; LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE"
            )
        sessions.precede(connection, f"SET LOCAL lock_timeout = '{limit}'")


def retry_locks(action: Callable[[], T]) -> T:
    """Run `action` again, with back-off, while it cannot get its lock within `lock_timeout`.

    Short waits between short attempts let the application's own statements pass in between,
    which one long wait in the lock queue would not. Raises Transient when a minute of attempts
    was not enough.
    """
    for attempt in range(LOCK_ATTEMPTS):
        try:
            return action()
        except DBAPIError as failure:
            if sqlstate(failure) not in ("55P03", "40P01"):
                raise
            time.sleep(min(2.0, 0.1 * 2**attempt) * random.uniform(0.5, 1.0))
    raise Transient(
        "A table stayed locked by another session",
        hint=LOCKED,
    )
