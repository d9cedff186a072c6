"""The thread beside a batch: renews its lease, and cuts it off when the worker has to stop."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

import psycopg2
import structlog
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from models.errors import LeaseLost
from models.ledger import claims
from models.ledger.claims import LEASE_SECONDS, Claim
from models.postgres.database import classify, transaction
from worker import shutdown

LOOK_SECONDS = 0.5
# A server that does not take a cancel request by then takes none.
CANCEL_SECONDS = 2.0
log = structlog.get_logger("migration.batch")


class Watch:
    """Watches over one batch for the time of the block.

    A worker that is frozen or dead stops renewing, and its batch goes to somebody else; a batch
    that only takes long is left in peace. A short batch never opens the second connection.
    """

    def __init__(self, engine: Engine, claim: Claim) -> None:
        self._engine, self._claim = engine, claim
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._connection: psycopg2.extensions.connection | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="watch")

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    @contextmanager
    def over(self, connection: Connection) -> Iterator[None]:
        """The block's statements on this connection may be cut off."""
        shutdown.check()
        with self._lock:
            self._connection = connection.connection.dbapi_connection  # type: ignore[assignment]
        try:
            yield
        finally:
            with self._lock:
                self._connection = None

    def sleep(self, seconds: float) -> None:
        """Sleep; raises Stopped as soon as the worker has to stop."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            shutdown.check()
            time.sleep(min(left, LOOK_SECONDS))

    def _run(self) -> None:
        renewed = time.monotonic()
        while not self._over.wait(LOOK_SECONDS):
            if shutdown.is_due():
                self._cut_off()
            if time.monotonic() - renewed < LEASE_SECONDS / 3:
                continue
            renewed = time.monotonic()
            try:
                with transaction(self._engine, is_single=True) as connection:
                    claims.renew(connection, self._claim)
            except LeaseLost:
                return
            except DBAPIError as failure:
                log.warning("lease not renewed", error=classify(failure).message)

    def _cut_off(self) -> None:
        """Cancel the statement, so that its locks go, then end the connection under it."""
        with self._lock, suppress(psycopg2.Error, OSError):
            if self._connection is None or self._connection.closed:
                return
            _cancel(self._connection)
            with socket.socket(fileno=os.dup(self._connection.fileno())) as wire:
                wire.shutdown(socket.SHUT_RDWR)


def _cancel(of: psycopg2.extensions.connection) -> None:
    """Ask the server to cancel the statement, and wait for it no longer than CANCEL_SECONDS.

    The driver holds the interpreter's lock until it is answered, so that a silent server would
    freeze this process: a child asks, which can be killed.
    """
    with warnings.catch_warnings():
        # A fork beside threads may hang at their locks: this child takes none.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            of.cancel()
        finally:
            os._exit(0)
    end = time.monotonic() + CANCEL_SECONDS
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return
        time.sleep(0.01)
