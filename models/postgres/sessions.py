"""What every transaction sets for itself: no role, database, address or environment decides it.

Set locally and with the first statement, so that a pooler in transaction mode can be in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from psycopg2.extensions import encodings
from sqlalchemy import Connection

# Everything that Unicode calls white space; PostgreSQL's own btrim() knows the space only.
_BLANKS = (
    "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006"
    "\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
# How values are read and written as text, what comparisons mean, and what ends a session early.
# `standard_conforming_strings` is missing on purpose: the driver quotes by what it was at login.
# `default_transaction_read_only` is, too: an operator sets it so that nothing is written.
_VALUES = {
    "client_encoding": "UTF8",
    "timezone": "UTC",
    "datestyle": "ISO, YMD",
    "intervalstyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "3",
    "quote_all_identifiers": "off",
    "array_nulls": "on",
    "transform_null_equals": "off",
    # A policy that would hide rows is an error.
    "row_security": "off",
    "exit_on_error": "off",
    "jit": "off",
    "migration.worker": "on",
}
READ_COMMITTED = "ISOLATION LEVEL READ COMMITTED"
# For each transaction that applies or checks a batch, and for whatever tries one before a run.
# Statements pass a batch's rows through a dozen CTEs: without memory these go over disk. They find
# rows by key, mostly in memory: with the costs of a disk, or with old statistics, the planner would
# read whole tables for each batch. Batches already run in parallel, so that parallel workers within
# a statement only compete.
BATCH_PLANNING = """
SET LOCAL work_mem = '32MB'; SET LOCAL random_page_cost = 0.1; SET LOCAL enable_seqscan = off;
SET LOCAL max_parallel_workers_per_gather = 0
"""
# Tables without a schema in the settings are found where the role finds them. Whatever the role's
# path says, functions, operators and types are PostgreSQL's own, and temporary tables come last.
_PATH = "pg_catalog.current_setting('search_path')"


def _search_path(*, is_local: bool) -> str:
    return (
        "pg_catalog.set_config('search_path', pg_catalog.concat("
        f"CASE WHEN pg_catalog.strpos({_PATH}, 'pg_catalog') OPERATOR(pg_catalog.>) 0"
        " THEN 'pg_catalog, ' END,"
        f" CASE WHEN {_PATH} OPERATOR(pg_catalog.<>) '' THEN pg_catalog.concat({_PATH}, ', ') END,"
        f" 'pg_temp'), {str(is_local).lower()})"
    )


def settings(
    connection: Connection,
    *,
    statement_timeout_ms: int,
    lock_timeout_ms: int,
    idle_timeout_ms: int = 0,
) -> str:
    """The statements that set all of it for the rest of the transaction; 0 is no limit."""
    limits = _limits(connection, statement_timeout_ms, lock_timeout_ms, idle_timeout_ms)
    values = (_VALUES | limits).items()
    set_all = [f"SET LOCAL {name} = '{value}'" for name, value in values]
    return "; ".join([*set_all, f"SELECT {_search_path(is_local=True)}"])


def _limits(
    connection: Connection, statement_ms: int, lock_ms: int, idle_ms: int
) -> dict[str, str]:
    values = {
        "statement_timeout": str(int(statement_ms)),
        "lock_timeout": str(int(lock_ms)),
        "idle_in_transaction_session_timeout": str(int(idle_ms)),
    }
    return values | ({"transaction_timeout": "0"} if server_version(connection) >= 170000 else {})


def begin(
    connection: Connection,
    *,
    statement_timeout_ms: int,
    lock_timeout_ms: int,
    idle_timeout_ms: int = 0,
    mode: str = READ_COMMITTED,
    also: str = "",
    is_single: bool = False,
) -> None:
    """Begin a transaction and settle it, together with its first statement: one round trip.

    Its mode comes before its first snapshot. `also` are further settings, which come last.
    A transaction of a single statement commits with it: what is sent at once, without a BEGIN, is a
    transaction of its own (https://www.postgresql.org/docs/current/protocol-flow.html, "Multiple
    Statements in a Simple Query").

    Under READ COMMITTED, a statement after a lock sees all that was committed before the lock.
    """
    limits = settings(
        connection,
        statement_timeout_ms=statement_timeout_ms,
        lock_timeout_ms=lock_timeout_ms,
        idle_timeout_ms=idle_timeout_ms,
    )
    begin = "" if is_single else "BEGIN; "
    opening = f"{begin}SET TRANSACTION {mode}; {limits}; {also}"
    _driver(connection).begin(opening, is_single=is_single)


def precede(connection: Connection, statements: str) -> None:
    """Send these statements, which answer nothing, together with the next one."""
    _driver(connection).precede(statements)


@contextmanager
def outside(connection: Connection) -> Iterator[None]:
    """The same, without limits, for a connection in autocommit; it is closed after the block.

    Behind a pooler the session belongs to other clients too: there, nothing is set.
    """
    values = _VALUES | _limits(connection, 0, 0, 0)
    values["default_transaction_isolation"] = "read committed"
    set_all = [f"pg_catalog.set_config('{n}', '{value}', false)" for n, value in values.items()]
    set_all.append(_search_path(is_local=False))
    pid = _driver(connection).info.backend_pid
    is_own = f"pg_catalog.pg_backend_pid() OPERATOR(pg_catalog.=) {pid}"
    guarded = ", ".join(f"CASE WHEN {is_own} THEN {one} END" for one in set_all)
    if not connection.exec_driver_sql(f"SELECT {is_own}, {guarded}").one()[0]:
        yield
        return
    try:
        yield
    finally:
        connection.invalidate()


def server_version(connection: Connection) -> int:
    """`server_version_num`, as the server said it at login."""
    return int(_driver(connection).info.server_version)


def blanks(connection: Connection) -> str:
    """The white space that texts are trimmed of, as far as the server's encoding has it.

    A server without an encoding compares bytes: there, only what is one byte is a letter.
    """
    name = _driver(connection).info.parameter_status("server_encoding") or "UTF8"
    codec = "ascii" if name == "SQL_ASCII" else encodings.get(name, "ascii")
    return _BLANKS.encode(codec, "ignore").decode(codec)


def _driver(connection: Connection) -> Any:
    return connection.connection.dbapi_connection
