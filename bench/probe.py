"""`python -m bench.probe`: what an application feels while a migration runs beside it.

Fifty requests a second, half of them indexed reads, half updates of one row, on the legacy tables;
latency is counted from the moment at which a request was due, so that one that waits delays none.
"""

from __future__ import annotations

import json
import random
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import click
from sqlalchemy import Engine, create_engine, text

from producer.demo import sample
from tests.soak.site import Site, finish, open_site, rows, workers

REQUESTS_A_SECOND, IDLE_SECONDS = 50, 20
_READ = text(
    "SELECT u.email, s.gpt_id FROM users u LEFT JOIN gpt_subscriptions s ON s.user_id = u.id"
    " WHERE u.id = :id"
)
_WRITE = text("UPDATE users SET updated_at = now() WHERE id = :id")


class Probe:
    """Sends requests from a thread of its own until it is stopped."""

    def __init__(self, address: str, ids: list[str]) -> None:
        self._engine = create_engine(
            address.replace("postgresql://", "postgresql+psycopg2://"), pool_size=20
        )
        self._ids = ids
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.milliseconds: list[float] = []

    def __enter__(self) -> Probe:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._engine.dispose()

    def _run(self) -> None:
        draw = random.Random(1)
        due = time.monotonic()
        with ThreadPoolExecutor(20) as sessions:
            while not self._over.is_set():
                statement = draw.choice((_READ, _WRITE))
                sessions.submit(self._send, due, statement, draw.choice(self._ids))
                due += 1 / REQUESTS_A_SECOND
                time.sleep(max(0.0, due - time.monotonic()))

    def _send(self, due: float, statement: object, key: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(statement, {"id": key})  # type: ignore[call-overload]
        self.milliseconds.append(1000 * (time.monotonic() - due))

    def summary(self) -> dict[str, float]:
        """Median, 99th percentile and longest, in milliseconds."""
        cut = statistics.quantiles(self.milliseconds, n=100)
        return {
            "requests": len(self.milliseconds),
            "p50_ms": round(cut[49], 1),
            "p99_ms": round(cut[98], 1),
            "longest_ms": round(max(self.milliseconds), 1),
        }


@click.command()
@click.option("--users", type=click.IntRange(1000), default=50_000, show_default=True)
def main(users: int) -> None:
    """Idle for some seconds, then beside `producer enqueue-all --wait`, the throttle as it is."""
    with open_site() as site:
        engine = site.fresh("probe")
        with engine.begin() as connection:
            sample.load(connection, users, dirty=False)
        ids = [row.id for row in rows(engine, "SELECT id FROM users")]
        with Probe(site.address("probe"), ids) as idle:
            time.sleep(IDLE_SECONDS)
        busy, ended = _busy(site, engine, ids)
        engine.dispose()
    found = {"users": users, "idle": idle.summary(), "busy": busy.summary(), "run": ended}
    found["p99_ratio"] = round(found["busy"]["p99_ms"] / found["idle"]["p99_ms"], 1)
    click.echo(json.dumps(found, indent=1))


def _busy(site: Site, engine: Engine, ids: list[str]) -> tuple[Probe, dict[str, object]]:
    with workers(site, 2), Probe(site.address("probe"), ids) as busy:
        ended = finish(site.producer("enqueue-all", "--wait", "--json"))
    return busy, {key: ended[key] for key in ("state", "seconds")}


if __name__ == "__main__":
    main()
