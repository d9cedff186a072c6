"""Whether PostgreSQL has a free slot for each session that the answering workers may open."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

from models.reports.checks import Check
from models.reports.diagnosis import Worker
from producer.broker import snapshot
from producer.checks.verdicts import ok, warning

# A process has a session for its batch and one for its lease; the main process of each worker has
# one for the reconciler. The waiting command has two, one of them for its display.
_A_PROCESS, _A_WORKER, _BESIDE = 2, 1, 2
HINT = (
    "Stop workers or start them with a smaller --concurrency, raise max_connections, or put a"
    " pooler in transaction mode between."
)
_FREE = text("""
SELECT current_setting('max_connections')::int
  - current_setting('superuser_reserved_connections')::int
  - coalesce(current_setting('reserved_connections', true), '0')::int
  - (SELECT count(*) FROM pg_stat_activity
     WHERE datid IS NOT NULL AND application_name IS DISTINCT FROM 'migration')
""")


def needed(workers: int, processes: int) -> int:
    """The sessions that so many workers, with so many processes in all, and a command may open."""
    return processes * _A_PROCESS + workers * _A_WORKER + _BESIDE


def check(connection: Connection) -> Check:
    """The verdict on the workers that answer now."""
    workers = snapshot.present().workers
    if said := shortage(connection, workers):
        return warning(said, HINT)
    return ok(f"{_free(connection)} free; {_processes(workers)} worker processes answer")


def shortage(connection: Connection, workers: Sequence[Worker]) -> str | None:
    """In words with numbers, where the workers may want more sessions than PostgreSQL has free."""
    processes, free = _processes(workers), _free(connection)
    wanted = needed(len(workers), processes)
    if not processes or wanted <= free:
        return None
    return (
        f"{processes} worker processes and a command may open {wanted} sessions, and PostgreSQL has"
        f" {free} free besides those of others"
    )


def _processes(workers: Sequence[Worker]) -> int:
    return sum(len(worker.processes) for worker in workers)


def _free(connection: Connection) -> int:
    return int(connection.scalar(_FREE) or 0)
