"""What a message says, and which queue it goes to; no Celery, as most commands publish none."""

from __future__ import annotations

from dataclasses import dataclass

from models.engine import current
from models.ledger.tables import RECONCILIATION, VERIFICATION

QUEUES = tuple(current.migration().queues)


@dataclass(frozen=True)
class Message:
    """What wakes a worker up: ids, nothing else."""

    run_id: str
    batch_id: int
    stage: str
    step: str

    @property
    def task(self) -> str:
        """The task's name, as Flower shows it."""
        verb = {VERIFICATION: "verify", RECONCILIATION: "reconcile"}.get(self.stage, self.step)
        return f"migration.{verb}"

    @property
    def queue(self) -> str:
        """The queue that serves it."""
        return (
            "migration.verify"
            if self.stage == VERIFICATION
            else current.migration().step(self.step).queue
        )
