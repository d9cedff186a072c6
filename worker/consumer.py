"""Celery's consumer, which follows its ledger to another prefix without a word of trouble."""

from __future__ import annotations

from typing import Any

from celery.worker.consumer import Consumer as CelerysConsumer

from producer.broker.transport import Moved


class Consumer(CelerysConsumer):
    """Connects anew where the process works for another ledger now; running tasks continue."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        # At each connection, mingling waits a second for what other workers know of revoked
        # tasks: none is ever revoked.
        # What gossip tells of other workers nobody here reads, and it fails when Redis goes away.
        without = {"without_mingle": True, "without_gossip": True}
        super().__init__(*arguments, **options | without)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """What Celery does after a lost connection; less where it was not lost."""
        if not isinstance(exc, Moved):
            super().on_connection_error_after_connected(exc)
            return
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()
