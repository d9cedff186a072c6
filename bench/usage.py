"""What a run costs: CPU seconds, bytes of WAL, of tables and of Redis, statements, peak memory."""

from __future__ import annotations

import threading
from contextlib import suppress
from types import TracebackType
from typing import Any

import psutil
import redis
from sqlalchemy import Engine

from producer.embedded import directories
from tests.soak.site import Site, rows

LOOK_SECONDS = 0.2
_BYTES = """
SELECT pg_current_wal_insert_lsn() - '0/0' AS wal, pg_database_size(current_database()) AS disk,
  (SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()) AS transactions
"""


class Usage:
    """Measures for the time of the block; `measured` holds the result afterwards."""

    def __init__(self, site: Site, engine: Engine, workers: list[psutil.Popen]) -> None:
        self._engine = engine
        self._redis = redis.Redis.from_url(site.servers.redis_url)
        self._watched: dict[str, list[psutil.Process]] = {"worker": list(workers)}
        self._peaks: dict[str, int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        place = directories.find(site.home)
        folder = str(place.root if place else site.home)
        self._postgres = [
            process
            for process in psutil.process_iter(["name"])
            if process.info["name"] == "postgres" and _is_below(process, folder)
        ]
        self.measured: dict[str, Any] = {}

    def watch(self, name: str, process: psutil.Process) -> None:
        """Follow the memory of one more process."""
        self._watched[name] = [process]

    def __enter__(self) -> Usage:
        self._redis.config_resetstat()
        self._before = rows(self._engine, _BYTES)[0]
        self._cpu = self._cpu_seconds()
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
        after, cpu = rows(self._engine, _BYTES)[0], self._cpu_seconds()
        self.measured = {
            "wal_bytes": int(after.wal - self._before.wal),
            "disk_bytes": int(after.disk - self._before.disk),
            "transactions": int(after.transactions - self._before.transactions),
            "cpu_seconds": {name: round(cpu[name] - self._cpu[name], 2) for name in cpu},
            "peak_bytes": self._peaks,
        }
        self._redis.close()

    def _cpu_seconds(self) -> dict[str, float]:
        """CPU seconds so far: PostgreSQL with its ended sessions, and the workers."""
        server = sum(_seconds(process, ended=True) for process in self._postgres)
        for process in self._postgres:
            with suppress(psutil.Error):
                server += sum(_seconds(child) for child in process.children())
        family = [
            member
            for process in self._watched["worker"]
            for member in (process, *process.children(recursive=True))
        ]
        return {"postgres": server, "workers": sum(map(_seconds, family))}

    def _look(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            for name, processes in self._watched.items():
                with suppress(psutil.Error):
                    for process in processes:
                        for member in (process, *process.children(recursive=True)):
                            self._note(name, member.memory_info().rss)
            with suppress(redis.RedisError):
                self._note("redis", int(self._redis.info("memory")["used_memory"]))

    def _note(self, name: str, size: int) -> None:
        self._peaks[name] = max(size, self._peaks.get(name, 0))


def _is_below(process: psutil.Process, folder: str) -> bool:
    with suppress(psutil.Error):
        line = process.cmdline()
        return folder in " ".join(line)
    return False


def _seconds(process: psutil.Process, *, ended: bool = False) -> float:
    with suppress(psutil.Error):
        times = process.cpu_times()
        of_children = times.children_user + times.children_system if ended else 0.0
        return float(times.user + times.system + of_children)
    return 0.0
