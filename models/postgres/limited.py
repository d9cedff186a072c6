"""Connections whose statements end, also when the server falls silent.

libpq waits for an answer forever. `statement_timeout` is the server's own, and where a proxy or a
load balancer still acknowledges every packet, TCP sees nothing wrong. So a thread of each process
asks the server, over a second connection, about each call that takes long: if the server does not
answer, or does not work on it, the thread closes the call's socket.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any, cast

import psycopg2
from psycopg2.extensions import (
    TRANSACTION_STATUS_IDLE,
    TRANSACTION_STATUS_INERROR,
    connection,
    cursor,
)

# After so long, and as often, the server is asked. Most statements may take no longer.
ASK_SECONDS = 60.0
ANSWER_SECONDS = 20.0
LOOK_SECONDS = 0.5
# Another server may have a process of that number, but none that has worked for so long. A role
# that took on another one may not see its own sessions' states: then nothing can be said.
_AT_WORK = """
SELECT pg_backend_pid(), EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s
  AND (coalesce(state, 'disabled') = 'disabled' OR state = 'active'
    AND clock_timestamp() - query_start > %s * interval '1 second'))
"""
# They answer nothing.
_MARKS = ("SAVEPOINT ", "RELEASE SAVEPOINT ")
# So often in a row there must be no answer: a pooler may have no server for the question now.
MISSES = 2


class Connection(connection):
    """A connection that is closed under a call which nobody works on; then the call fails.

    For the caller this is a lost connection like any other: a commit may have happened.
    """

    def __init__(self, dsn: str, *arguments: Any, **options: Any) -> None:
        super().__init__(dsn, *arguments, **options)
        self.address = dsn
        self.used_at = time.monotonic()
        # Whether `begin` began the present transaction; what is still to be sent.
        self._is_begun = self.is_single = False
        self._unsent: list[str] = []

    def begin(self, opening: str, *, is_single: bool = False) -> None:
        """Begin a transaction by these statements, BEGIN first.

        They are sent with the next statement: the driver alone would ask three times for it.
        A transaction of a single statement starts without BEGIN, and commits with it.
        """
        # SQLAlchemy names a level after an autocommit, and the driver would then set it back each
        # time, in a round trip.
        self.isolation_level = None
        self.autocommit = self._is_begun = True
        self.is_single = is_single
        self._unsent = [opening]

    def precede(self, statements: str) -> None:
        """Send these statements with the next one, unless the transaction has failed."""
        if self.info.transaction_status != TRANSACTION_STATUS_INERROR:
            self._unsent.append(statements)

    def unsent(self) -> str:
        """What has to be sent before the next statement."""
        found, self._unsent = "; ".join(self._unsent), []
        if self.is_single and not found:
            raise RuntimeError("A transaction of a single statement got another one")
        return found

    def commit(self) -> None:
        """COMMIT, watched."""
        with _watched(self):
            if not self._ends("COMMIT"):
                super().commit()

    def rollback(self) -> None:
        """ROLLBACK, watched."""
        with _watched(self):
            if not self._ends("ROLLBACK"):
                super().rollback()

    def _ends(self, word: str) -> bool:
        """End what `begin` began; False where that is the driver's to do, or it is closed.

        What was not sent yet, the end makes needless.
        """
        self._unsent = []
        if not self._is_begun or self.closed:
            return False
        self._is_begun = self.is_single = False
        try:
            if self.info.transaction_status != TRANSACTION_STATUS_IDLE:
                with self.cursor() as last:
                    last.execute(word)
        finally:
            if not self.closed:
                self.autocommit = False
        return True


class Cursor(cursor):
    """The cursor of such a connection."""

    def execute(self, query: Any, vars: Any = None) -> None:
        """Run a statement, watched; the first one of a transaction begins it.

        A savepoint is set, and let go, together with the next statement.
        """
        # One with more statements behind it may give an answer.
        if isinstance(query, str) and query.startswith(_MARKS) and ";" not in query:
            self._connection.precede(query)
            return
        if opening := self._opening():
            query = f"{opening if vars is None else opening.replace('%', '%%')}; {query}"
        with _watched(self.connection):
            super().execute(query, vars)

    def executemany(self, query: Any, vars_list: Any) -> None:
        """Run a statement for each of several values, watched."""
        self._begin()
        with _watched(self.connection):
            super().executemany(query, vars_list)

    def copy_expert(self, *arguments: Any, **options: Any) -> None:
        """Run a COPY, which is not watched."""
        self._begin()
        super().copy_expert(*arguments, **options)

    @property
    def _connection(self) -> Connection:
        return cast(Connection, self.connection)

    def _opening(self) -> str:
        return self._connection.unsent()

    def _begin(self) -> None:
        if self._connection.is_single:
            raise RuntimeError("These are more statements than a single one")
        if opening := self._opening():
            self.execute(opening)


class _Watch:
    """The calls that are under way in this process, and the thread that looks at them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.since: dict[Connection, float] = {}
        self.thread: threading.Thread | None = None

    def begin(self, of: Connection) -> None:
        """Watch a call on this connection, which has one at a time."""
        with self.lock:
            self.since[of] = time.monotonic()
            if self.thread is None:
                self.thread = threading.Thread(target=self._run, daemon=True, name="limits")
                self.thread.start()

    def end(self, of: Connection) -> None:
        """Stop to watch it."""
        of.used_at = time.monotonic()
        with self.lock:
            self.since.pop(of, None)

    def _run(self) -> None:
        asked: dict[Connection, float] = {}
        missed: dict[Connection, int] = {}
        while True:
            time.sleep(LOOK_SECONDS)
            now = time.monotonic()
            with self.lock:
                asked = {of: max(asked.get(of, 0.0), at) for of, at in self.since.items()}
                late = [of for of, at in asked.items() if now - at >= ASK_SECONDS]
            missed = {of: count for of, count in missed.items() if of in asked}
            for of in late:
                asked[of] = now
                missed[of] = self._look(of, missed.get(of, 0))

    def _look(self, of: Connection, missed: int) -> int:
        """Ask about a call, and hang up after enough misses; returns how many there are now."""
        since = self.since.get(of)
        if since is None or _is_worked_on(of, time.monotonic() - since):
            return 0
        with self.lock:
            if missed + 1 >= MISSES and self.since.get(of) == since:
                _hang_up(of)
        return missed + 1


_watch = _Watch()


def _renew() -> None:
    global _watch
    _watch = _Watch()


# The parent's thread is not there after a fork, and its lock may have been taken.
os.register_at_fork(after_in_child=_renew)


@contextmanager
def _watched(of: Any) -> Iterator[None]:
    watch = _watch
    watch.begin(of)
    try:
        yield
    finally:
        watch.end(of)


def _is_worked_on(of: Connection, seconds: float) -> bool:
    """Whether the server works on a call that began so long ago, or says that it cannot tell."""
    found: list[bool] = []
    began = time.monotonic()

    def ask() -> None:
        try:
            with closing(psycopg2.connect(of.address)) as probe, probe.cursor() as asking:
                asking.execute(_AT_WORK, (of.info.backend_pid, seconds / 2))
                pid, is_at_work = asking.fetchone() or (0, False)
                # Behind a pooler the numbers are not those of PostgreSQL's processes.
                found.append(is_at_work or pid != probe.info.backend_pid)
        except psycopg2.Error:
            # A refusal comes at once, and is an answer: there may be no more connections.
            found.append(time.monotonic() - began < ANSWER_SECONDS / 4)

    thread = threading.Thread(target=ask, daemon=True, name="limits-probe")
    thread.start()
    thread.join(ANSWER_SECONDS)
    return any(found)


def _hang_up(of: Connection) -> None:
    with suppress(psycopg2.Error, OSError), socket.socket(fileno=os.dup(of.fileno())) as wire:
        wire.shutdown(socket.SHUT_RDWR)
