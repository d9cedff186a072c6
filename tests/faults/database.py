"""Faults of the database: cut, restarted, deadlocked, locked, slow, full."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from tests.faults.messages import at_a_batch
from tests.faults.site import BATCH_SIZE, Site

_WAITING = (
    "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND state = 'active'"
    " AND datname = current_database() AND application_name = 'migration' LIMIT 1"
)


@contextmanager
def application(site: Site, condition: str) -> Iterator[Connection]:
    """A transaction of the application that has locked some users, and workers that meet it.

    Workers start after it, since the schema's own changes would wait for it.
    """
    site.enqueue()
    with site.engine.connect() as connection, connection.begin():
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        connection.execute(text(f"SELECT FROM users WHERE {condition} FOR UPDATE"))
        site.work()
        site.until(lambda: site.scalar(_WAITING), "a batch that waits for the lock")
        yield connection


def _nth_user(site: Site) -> str:
    return f"id = (SELECT id FROM users ORDER BY id LIMIT 1 OFFSET {site.repetition * 5 % 100})"


def cut(site: Site) -> float:
    """The session of a batch is terminated in the middle of its statement."""
    with application(site, _nth_user(site)):
        assert site.scalar(f"SELECT pg_terminate_backend(pid) FROM ({_WAITING}) AS waiting")
        return time.time()


def restarted(site: Site) -> float:
    """PostgreSQL is stopped without a checkpoint (`pg_ctl stop -m immediate`) and started."""
    at_a_batch(site)
    os.kill(site.lane.postmaster(), signal.SIGQUIT)
    site.until(lambda: not _answers(site), "the end of PostgreSQL")
    site.lane.start()
    return time.time()


def _answers(site: Site) -> bool:
    with suppress(DBAPIError):
        return bool(site.scalar("SELECT 1"))
    return False


def deadlocked(site: Site) -> float:
    """The application locks two users of a page in the opposite order; the batch is the victim."""
    before = site.scalar("SELECT deadlocks FROM pg_stat_database WHERE datname = 'site'")
    page = f"id IN (SELECT id FROM users ORDER BY id LIMIT {BATCH_SIZE})"
    with application(site, f"id = (SELECT max(id) FROM users WHERE {page})") as connection:
        connection.execute(text("SET LOCAL deadlock_timeout = '1min'"))
        connection.execute(text(f"SELECT FROM users WHERE {page} ORDER BY id DESC FOR UPDATE"))
    found = "SELECT deadlocks FROM pg_stat_database WHERE datname = 'site'"
    site.must("there was a deadlock", lambda: site.scalar(found) > before)
    return time.time()


def locked(site: Site) -> float:
    """The application holds every user's row for a minute."""
    with application(site, "true"):
        site.hold(3 if site.is_short else 60)
    return time.time()


def slow(site: Site) -> None:
    """The statement of one page runs into its timeout, and so do its halves."""
    _trigger(
        site,
        f"IF NEW.id IN (SELECT id FROM users ORDER BY id LIMIT {BATCH_SIZE} OFFSET"
        f" {site.repetition % 3 * BATCH_SIZE}) THEN PERFORM nextval('hit'), pg_sleep(0.05); END IF",
        "BEFORE UPDATE ON users",
    )
    site.work(FAULT_STATEMENT_MS="500")
    site.must("the trigger was hit", lambda: site.scalar("SELECT last_value FROM hit") > BATCH_SIZE)


def disk_full(site: Site) -> None:
    """The first ten writes of tools fail as they would on a full disk."""
    _trigger(
        site,
        "IF nextval('hit') <= 10 THEN RAISE EXCEPTION USING ERRCODE = '53100',"
        " MESSAGE = 'could not extend file: No space left on device'; END IF",
        "BEFORE INSERT ON ai_tools",
    )
    site.work()
    site.must("the trigger was hit", lambda: site.scalar("SELECT last_value FROM hit") > 10)


def _trigger(site: Site, body: str, when: str) -> None:
    """Let a trigger misbehave; the target tables are there once the producer has ended."""
    site.enqueue()
    site.change(
        "CREATE SEQUENCE hit",
        "CREATE FUNCTION misbehave() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN {body}; RETURN NEW; END $$",
        f"CREATE TRIGGER misbehave {when} FOR EACH ROW EXECUTE FUNCTION misbehave()",
    )
