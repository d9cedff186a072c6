"""Celery's consumer, which follows its ledger to another prefix without a word of trouble."""

from __future__ import annotations

import os
import time
import warnings
from pathlib import Path
from typing import Any

from celery.exceptions import CPendingDeprecationWarning
from celery.worker.consumer import Consumer as CelerysConsumer

from producer import alive
from producer.broker.transport import Moved
from producer.logs import Log

ALIVE_SECONDS = 15.0
# What watchers hear of tasks may be so old. Each sending costs the main loop a round trip, during
# which it fetches no message.
EVENT_SECONDS = 0.5
log = Log("migration.worker")


def show_life() -> None:
    """Touch the file that a container's probe looks at: only this process's main loop does.

    It has the host's name: another worker in the same folder says nothing of this one.

    A probe that asks a server, or loads this program, fails when the server is away or the machine
    is busy, and has a worker restarted that is well.
    """
    home = os.environ.get("MIGRATION_HOME")
    if not home:
        return
    try:
        Path(home).mkdir(parents=True, exist_ok=True)
        alive.file_in(Path(home)).touch()
    except OSError as failure:
        # To Celery, this would be a lost broker.
        log.warning("no file for a probe", folder=home, error=f"{failure.strerror}")


class Consumer(CelerysConsumer):
    """Connects anew where the process works for another ledger now; running tasks continue."""

    hub: Any
    _flush_events: Any

    def __init__(self, *arguments: Any, **options: Any) -> None:
        # At each connection, mingling waits a second for what other workers know of revoked
        # tasks: none is ever revoked.
        # What gossip tells of other workers nobody here reads, and it fails when Redis goes away.
        without = {"without_mingle": True, "without_gossip": True}
        super().__init__(*arguments, **options | without)
        self._events_due = float("-inf")

    def loop_args(self) -> Any:
        """What Celery's event loop gets, which shows life from now on."""
        show_life()
        self.timer.call_repeatedly(ALIVE_SECONDS, show_life)
        return super().loop_args()

    def on_send_event_buffered(self) -> Any:
        """Send the events of tasks together, with those that come soon."""
        # By the time it is due, and not until it was done: a lost connection clears the timer.
        if self.hub and time.monotonic() >= self._events_due:
            self._events_due = time.monotonic() + EVENT_SECONDS
            self.hub.call_later(EVENT_SECONDS, self._flush_events)

    def stop(self) -> None:
        """Stop, and send the last events before."""
        self._flush_events()
        super().stop()

    def ensure_connected(self, conn: Any) -> Any:
        """Wait for the broker, and show life before each attempt, at most half a minute apart."""
        ensure = conn.ensure_connection

        def attempt(*arguments: Any, callback: Any, **options: Any) -> Any:
            def look() -> None:
                show_life()
                callback()

            return ensure(*arguments, callback=look, **options)

        conn.ensure_connection = attempt
        return super().ensure_connected(conn)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """What Celery does after a lost connection; less where it was not lost."""
        if not isinstance(exc, Moved):
            with warnings.catch_warnings():
                # It says at each lost connection that tasks go on, which they may.
                warnings.simplefilter("ignore", CPendingDeprecationWarning)
                super().on_connection_error_after_connected(exc)
            return
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()
