"""An application that writes two hundred times a second, and what that costs the run."""

from __future__ import annotations

import statistics
import time
from typing import Any

from sqlalchemy import Engine

from tests.application import Application, Traffic
from tests.soak.site import Site, finish, load, rows, verdict, workers

WRITES_A_SECOND, PAIRS = 200.0, 3


def run(site: Site, users: int) -> dict[str, Any]:
    """The same school, migrated in peace and under traffic in turn; ratios of each pair."""
    legacy = site.fresh("legacy")
    before = load(legacy, users)
    legacy.dispose()
    pairs: list[dict[str, Any]] = []
    for number in range(PAIRS):
        idle = _once(site, None, before)
        busy = _once(site, number, before)
        pairs.append({"idle": idle, "busy": busy, "ratio": busy["seconds"] / idle["seconds"]})
    return {
        "users": users,
        "ratio": round(statistics.median(pair["ratio"] for pair in pairs), 2),
        "differences": sum(pair["busy"]["differences"] for pair in pairs),
        "wrong_rows": sum(pair["busy"]["wrong_rows"] for pair in pairs),
        "pairs": pairs,
    }


def _once(site: Site, seed: int | None, before: Any) -> dict[str, Any]:
    engine = site.fresh("live", template="legacy")
    traffic = None
    if seed is not None:
        traffic = Traffic(Application(engine, seed=seed), WRITES_A_SECOND)
    with workers(site, 2):
        started = time.monotonic()
        producer = site.producer("enqueue-all", "--wait", "--json")
        if traffic:
            traffic.start()
        ended = finish(producer, lambda: _spare(engine, traffic))
        seconds = time.monotonic() - started
        if traffic:
            traffic.stop()
        found: dict[str, Any] = {
            "seconds": round(seconds, 1),
            "exit_status": ended["exit_status"],
            "differences": sum(ended["differences"].values()),
        }
        if traffic:
            settled = rows(
                engine,
                "SELECT (counts ->> 'locked_ms')::int AS locked_ms FROM migration.batches"
                " WHERE step = 'settle'",
            )
            # What was written after the last lock comes with the next run.
            again = finish(site.producer("enqueue-all", "--wait", "--json"))
            wrong = verdict(engine, before)
            found |= {
                "writes": sum(traffic.application.done.values()),
                "writes_a_second": round(
                    sum(traffic.application.done.values()) / traffic.seconds, 1
                ),
                "writes_refused": len(traffic.application.refused),
                "first_refused": traffic.application.refused[:3],
                "slowest_write_ms": round(traffic.slowest * 1000),
                # None: it failed before its last step.
                "locked_ms": settled[0].locked_ms if settled else None,
                "next_run": again["exit_status"],
                "wrong_rows": len(wrong),
                "first_wrong_rows": wrong[:5],
            }
    engine.dispose()
    return found


def _spare(engine: Engine, traffic: Traffic | None) -> None:
    """From the verification on, no write that a later run would leave alone."""
    if traffic and not traffic.application.is_sparing:
        ledger = rows(engine, "SELECT to_regclass('migration.stages')")[0][0]
        begun = "SELECT FROM migration.stages WHERE name = 'verification' AND state <> 'pending'"
        if ledger and rows(engine, begun):
            traffic.application.spare()
