"""The guide's checklist before a migration: a verdict a row, and what to do about it.

Read-only, but for the trial, which is rolled back (`producer.checks.trial`).
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from models.engine import current
from models.engine.live import capture
from models.engine.source import Sources
from models.errors import MigrationError
from models.ledger import identity, relations, revision
from models.postgres import sessions
from models.postgres.catalog import quote_name
from models.postgres.database import check_reachable, classify
from models.postgres.rows import estimate
from models.preflight import examine as preflight
from models.preflight import taken
from models.reports.checks import Check
from models.settings import Settings
from producer.broker import readiness
from producer.checks import forecast, obstacle_rows, slots
from producer.checks.http import ask_all
from producer.checks.verdicts import failed, look, ok, unknown, warning

GIGABYTE = 10**9
DISK_BYTES, MEMORY_BYTES, CORES = GIGABYTE, 4 * GIGABYTE, 2
CLOCK_SECONDS = OPENAPI_SECONDS = 5.0
# A session that holds a lock, or is in a transaction, for longer is in the way.
LOCK_SECONDS, TRANSACTION_SECONDS = 5, 60
_READING = "ISOLATION LEVEL READ COMMITTED, READ ONLY"

_IN_THE_WAY = text("""
SELECT count(DISTINCT l.pid) FILTER (WHERE a.xact_start IS NOT NULL) AS sessions,
  count(DISTINCT l.pid) FILTER (WHERE a.xact_start IS NULL) AS hidden,
  max(extract(epoch FROM now() - a.xact_start)) AS seconds
FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.granted AND l.pid <> pg_backend_pid() AND l.relation = ANY(ARRAY(
    SELECT to_regclass(name)::oid FROM unnest(CAST(:tables AS text[])) AS name))
  AND l.mode IN ('ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock',
    'ExclusiveLock', 'AccessExclusiveLock', 'RowExclusiveLock')
  AND coalesce(a.xact_start < now() - make_interval(secs => :seconds), true)
""")
_PREPARED = text("""
SELECT p.gid, extract(epoch FROM now() - p.prepared) AS seconds
FROM pg_prepared_xacts p
WHERE p.database = current_database() AND p.prepared < now() - make_interval(secs => :seconds)
  AND EXISTS (
    SELECT FROM pg_locks own JOIN pg_locks l ON l.virtualtransaction = own.virtualtransaction
    WHERE own.transactionid = p.transaction AND own.pid IS NULL AND l.pid IS NULL
      AND l.relation = ANY(ARRAY(
        SELECT to_regclass(name)::oid FROM unnest(CAST(:tables AS text[])) AS name)))
ORDER BY p.prepared LIMIT 1
""")
_LONG = text("""
SELECT count(*) FILTER (WHERE xact_start IS NOT NULL) AS sessions,
  count(*) FILTER (WHERE xact_start IS NULL) AS hidden,
  max(extract(epoch FROM now() - xact_start)) AS seconds
FROM pg_stat_activity
WHERE pid <> pg_backend_pid() AND datname = current_database()
  AND (xact_start < now() - make_interval(secs => :seconds) OR query = '<insufficient privilege>')
""")


def examine(engine: Engine, settings: Settings) -> list[Check]:
    """Every check, in the order of the guide's list; nothing of what they do remains."""
    return [
        look(
            "python",
            lambda: ok(f"{platform.python_version()} on {_here()}"),
            _unread,
        ),
        *_database(engine, settings),
        *readiness.examine(),
        look("fastapi", lambda: _fastapi(settings), _unread),
        look("disk for backups", lambda: _disk(settings.home, DISK_BYTES), _unread),
        look("memory", lambda: _memory(psutil.virtual_memory().total), _unread),
        look("cores", lambda: _cores(psutil.cpu_count() or 0), _unread),
    ]


def _unread(message: str) -> Check:
    return unknown(f"could not be read: {message}")


@contextmanager
def _reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that cannot write, and waits for no lock of others for long."""
    with engine.connect() as connection, connection.begin():
        sessions.begin(
            connection, statement_timeout_ms=120_000, lock_timeout_ms=2_000, mode=_READING
        )
        yield connection


def _database(engine: Engine, settings: Settings) -> list[Check]:
    found: list[Check] = []

    def read(name: str, check: Callable[[Connection], Check]) -> None:
        def inside() -> Check:
            with _reading(engine) as connection:
                return check(connection)

        found.append(look(name, inside, _unread))

    def on_legacy(name: str, check: Callable[[Connection, Sources], Check]) -> None:
        tables, cause = standing.sources, obstacle_rows.blocked_by(standing)
        if tables is None or cause:
            found.append(obstacle_rows.skipped(name, cause))
        else:
            read(name, lambda connection: check(connection, tables))

    try:
        check_reachable(engine)
    except MigrationError as error:
        return [Check(name="postgresql", verdict="failed", found=error.message, hint=error.hint)]
    read("postgresql", _version)
    read("writable", _writable)
    read("encoding", _encoding)
    read("extensions", _extensions)
    standing, rows = _standing(engine, settings)
    found += rows
    on_legacy("ledger", lambda connection, sources: _ledger(connection, settings, sources))
    on_legacy("quarantined rows", _forecast)
    for name, check in current.migration().checks.items():
        on_legacy(name, check)
    # By name alone: reading more of a table's catalog would wait for the lock itself.
    read("locks", lambda connection: _locks(connection, settings))
    read("long transactions", _long_transactions)
    read("clock", _clock)
    read("connections", slots.check)
    on_legacy("disk of the database", _database_disk)
    found.append(obstacle_rows.try_out(engine, settings, [*found[:2], *rows]))
    found += obstacle_rows.play_examples(engine, settings, found)
    return found


def _version(connection: Connection) -> Check:
    return ok(str(connection.scalar(text("SHOW server_version"))))


def _writable(connection: Connection) -> Check:
    if connection.scalar(text("SELECT pg_is_in_recovery()")):
        return failed("a replica", "Set DATABASE_URL to the primary.")
    if connection.scalar(text("SHOW default_transaction_read_only")) == "on":
        return failed(
            "read-only by default_transaction_read_only", "Set it to off for the migration's role."
        )
    return ok("a primary")


def _encoding(connection: Connection) -> Check:
    encoding = str(connection.scalar(text("SHOW server_encoding")))
    if encoding == "UTF8":
        return ok(encoding)
    return warning(
        encoding, "JSON escapes that it has no letter for are quarantined with their rows."
    )


def _extensions(connection: Connection) -> Check:
    there = connection.scalar(text("SELECT true FROM pg_language WHERE lanname = 'plpgsql'"))
    if there:
        return ok("plpgsql; no other is needed")
    return failed("no plpgsql", "CREATE EXTENSION plpgsql")


def _standing(engine: Engine, settings: Settings) -> tuple[preflight.Preflight, list[Check]]:
    """What the catalog and the values say of the tables; unknown where they cannot be read now."""
    try:
        with _reading(engine) as connection:
            found = preflight.examine(connection, settings)
            return found, obstacle_rows.rows(connection, found)
    except DBAPIError as failure:
        message = f"could not be read: {classify(failure).message}"
        unread = Check(name="legacy tables", verdict="unknown", found=message)
        return preflight.Preflight(None, None, []), [unread]


def _ledger(connection: Connection, settings: Settings, sources: Sources) -> Check:
    """The schema `migration`, where there is one, is the ledger of these tables."""
    taken.require_own_schema(connection)
    capture.require_free_names(connection, sources)
    if revision.is_older(connection):
        return warning(
            "of an older version of this product",
            "Run: producer schema upgrade (enqueue-all does it, too).",
        )
    if connection.scalar(text("SELECT to_regprocedure('migration.ledger_id()')")) is None:
        return ok("none yet")
    relations.require_own_ledger(connection, settings)
    if identity.read(connection) is None:
        return warning(
            "the copy of another database's",
            "It gets an identity of its own from producer schema upgrade, or enqueue-all.",
        )
    return ok("of these tables")


def _forecast(connection: Connection, sources: Sources) -> Check:
    found, unsure = forecast.count(connection, sources)
    rest = f"; {unsure}" if unsure else ""
    if not found:
        return ok(f"none{rest}")
    said = ", ".join(f"{count:,} {reason}" for reason, count in found.items())
    return warning(
        said + rest,
        "They are quarantined, the rest goes through. List them: producer quarantine --preview."
        " Fix them before the run, or retry them after it.",
    )


def _locks(connection: Connection, settings: Settings) -> Check:
    names = [quote_name(name) for name in current.table_names(settings)]
    given = {"tables": names, "seconds": LOCK_SECONDS}
    forgotten = connection.execute(_PREPARED, given).one_or_none()
    if forgotten:
        return failed(
            f"the prepared transaction {forgotten.gid!r} holds locks on the legacy tables,"
            f" for {forgotten.seconds:,.0f} s",
            "End it: COMMIT PREPARED or ROLLBACK PREPARED, see pg_prepared_xacts.",
        )
    row = connection.execute(_IN_THE_WAY, given).one()
    if not row.sessions:
        return _hidden(row.hidden, "that hold locks on the legacy tables") or ok("none in the way")
    return failed(
        f"{row.sessions} sessions hold locks on the legacy tables, for {row.seconds:,.0f} s",
        "Find them in pg_locks and pg_stat_activity, and end their transactions.",
    )


def _hidden(sessions: int, which: str) -> Check | None:
    """The verdict where others' sessions show themselves, but not since when they are at it."""
    if not sessions:
        return None
    return unknown(
        f"{sessions} sessions {which}: since when cannot be seen",
        "GRANT pg_read_all_stats to the role that DATABASE_URL works as, for the night.",
    )


def _long_transactions(connection: Connection) -> Check:
    row = connection.execute(_LONG, {"seconds": TRANSACTION_SECONDS}).one()
    if not row.sessions:
        return _hidden(row.hidden, "of other roles") or ok("none")
    return warning(
        f"{row.sessions}, the oldest for {row.seconds:,.0f} s",
        "Building an index waits for them: end them, or begin when they are over.",
    )


def _clock(connection: Connection) -> Check:
    before = datetime.now(UTC)
    there = connection.scalar(text("SELECT clock_timestamp() AT TIME ZONE 'UTC'"))
    middle = before + (datetime.now(UTC) - before) / 2
    assert there is not None
    seconds = (there.replace(tzinfo=UTC) - middle).total_seconds()
    if abs(seconds) < CLOCK_SECONDS:
        return ok(f"{abs(seconds):.1f} s apart")
    return warning(
        f"the database's is {abs(seconds):,.0f} s {'ahead' if seconds > 0 else 'behind'}",
        "Leases go by the database's clock alone; logs will not match. Check NTP.",
    )


def _database_disk(connection: Connection, sources: Sources) -> Check:
    rows = estimate(connection, sources.first)
    needed = max(DISK_BYTES, rows * current.migration().bytes_a_row)
    with connection.begin_nested() as attempt:
        try:
            folder = Path(str(connection.scalar(text("SHOW data_directory"))))
        except DBAPIError:
            attempt.rollback()
            folder = Path()
    url = connection.engine.url
    host = str(url.host or os.environ.get("PGHOST", "/"))
    is_here = host.startswith("/") or host in ("localhost", "127.0.0.1", "::1")
    if not (is_here and folder.is_absolute() and folder.exists()):
        return unknown(
            "cannot be seen from here", f"Look for {needed / GIGABYTE:,.1f} GB of free space there."
        )
    return _disk(folder, needed)


def _disk(folder: Path, needed: int) -> Check:
    """Free space where the folder is, or will be."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    said = f"{free / GIGABYTE:,.1f} GB free, {needed / GIGABYTE:,.1f} GB needed"
    return ok(said) if free >= needed else failed(said, f"Make room under {there}.")


def _memory(there: int) -> Check:
    said = f"{there / GIGABYTE:,.1f} GB on {_here()}"
    # What is sold as 4 GB shows a little less: firmware and kernel take theirs.
    if there >= 0.9 * MEMORY_BYTES:
        return ok(said)
    return failed(said, "The guide asks for 4 GB; workers take 100 MB each.")


def _cores(there: int) -> Check:
    said = f"{there} on {_here()}"
    return ok(said) if there >= CORES else failed(said, "The guide asks for 2.")


def _here() -> str:
    """Whose Python, memory and cores are checked: those of the machine of this command."""
    return f"this machine ({socket.gethostname()})"


def _fastapi(settings: Settings) -> Check:
    """Since its 0.99, FastAPI writes OpenAPI 3.1; earlier versions do not show which they are."""
    pages = [urlsplit(url)._replace(path="/openapi.json", query="") for url in settings.api_urls]
    for answer in ask_all([page.geturl() for page in pages], OPENAPI_SECONDS):
        with suppress(ValueError, KeyError, TypeError):
            form = str(json.loads(answer.body)["openapi"])
            if form.startswith("3.") and int(form.split(".")[1]) >= 1:
                return ok(f"0.99 or newer (OpenAPI {form})")
    return unknown(
        "its pages do not show it" if pages else "no URL to ask",
        "The guide asks for 0.68 or newer: pip show fastapi, where the dashboard runs.",
    )
