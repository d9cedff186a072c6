"""Which workers answer: asked in the background, so that no page waits for those that do not."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock, Thread

from models.ledger.tables import WORKED_ON
from models.reports.diagnosis import Worker
from models.reports.run import RunReport, WorkerProcess
from producer.broker import snapshot
from producer.broker.snapshot import Broker
from producer.logs import Log

ASK_SECONDS = 5.0
log = Log("migration.console")


class Presence:
    """What the workers answered last; they are asked again only while somebody looks."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._asked = float("-inf")
        self._is_asking = False
        self._seen: Broker | None = None

    def seen(self) -> Broker | None:
        """The last answer; None until the first one is there."""
        with self._lock:
            is_old = time.monotonic() - self._asked >= ASK_SECONDS
            if is_old and not self._is_asking:
                self._is_asking = True
                Thread(target=self._ask, name="presence", daemon=True).start()
            return self._seen

    def _ask(self) -> None:
        try:
            found = snapshot.present()
        except Exception as failure:
            # The boundary of the thread: whatever it was, the page says it, and asks again.
            log.warning("workers not asked", error=type(failure).__name__)
            found = Broker(down=f"it fails with {type(failure).__name__}")
        with self._lock:
            self._seen, self._asked, self._is_asking = found, time.monotonic(), False


@dataclass(frozen=True)
class Attending:
    """A worker by the name that Flower shows, and its processes that take part in the run.

    The name is empty for processes that hold or held a batch, and belong to no worker that answers.
    """

    name: str
    queues: list[str]
    hands: list[WorkerProcess] = field(default_factory=list)


def attending(found: RunReport, workers: Sequence[Worker]) -> list[Attending]:
    """The workers that answer, with what their processes do, and the processes that remain."""
    rest = list(found.live.hands if found.live else [])
    result = []
    for worker in workers:
        mine = [hand for hand in rest if _is_of(hand, worker)]
        rest = [hand for hand in rest if hand not in mine]
        result.append(Attending(worker.name, worker.queues, mine))
    return [*result, Attending("", [], rest)] if rest else result


def _is_of(hand: WorkerProcess, worker: Worker) -> bool:
    host, _, process = hand.worker.rpartition("/")
    return worker.name.rpartition("@")[2] == host and process in map(str, worker.processes)


def alarm(found: RunReport, seen: Broker | None) -> str:
    """What keeps every worker from a run that waits for them, or nothing."""
    if seen is None or found.state not in WORKED_ON:
        return ""
    if seen.down:
        return (
            f"Redis does not answer: {seen.down}. Workers get no messages. Nothing is lost: the run"
            " continues when Redis is back."
        )
    hands = found.live.hands if found.live else []
    # One without a process of its own for batches answers between two of them only.
    if seen.workers or any((hand.lease_seconds or 0) > 0 for hand in hands):
        return ""
    return "No worker is running. The run waits for one: celery -A worker worker"
