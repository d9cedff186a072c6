"""A ledger as a run over a million users leaves it, or has halfway: ten thousand batches.

`python -m tests.large_ledger 500000` times what reads a larger one, three times each.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

from sqlalchemy import Connection, Engine, text

from models.engine import current
from models.settings import Settings, load
from producer.demo import sample
from producer.reports import metrics, status
from producer.runs import advance, reconciler, windows
from producer.schema import upgrade
from tests.soak.site import open_site

USERS, BATCHES = 1_000_000, 10_000
RUN = "20260101-000000-1a26"
# Stage, share of the batches, what a batch's counts look like.
_STAGES = {
    "users": (
        0.4,
        '{"rows": {"ai_suites": 250, "ai_tools": 750, "tool_assignments": 750,'
        ' "tool_usage_logs": 750}, "users": {"total": 250, "quarantined": 0},'
        ' "subscriptions": {"total": 750, "quarantined": 1}, "credits_granted": "47550.00"}',
    ),
    "projects": (
        0.15,
        '{"rows": {"ai_tools": 414, "tool_assignments": 414, "tool_usage_logs": 414},'
        ' "projects": {"total": 598, "quarantined": 0}, "credits_granted": "0"}',
    ),
    "switch": (0.15, '{"switched": 464}'),
    "verification": (
        0.2,
        '{"users": {"total": 500, "quarantined": 0}, "differences": 0, "rows_checked": 2000,'
        ' "subscriptions": {"total": 1500, "quarantined": 2}}',
    ),
    "reconciliation": (0.1, '{"discrepancies": 0, "users_checked": 1000}'),
}
_FINAL = """{"final": {"users": {"total": 1000000, "quarantined": 0},
 "subscriptions": {"total": 3000000, "quarantined": 20000},
 "projects": {"total": 1000000, "quarantined": 0}}}"""


def fill(
    connection: Connection, *, state: str = "completed_with_quarantine", number: int = BATCHES
) -> None:
    """Write the ledger of one run; a `running` one is in the middle of its users."""
    is_open = state == "running"
    ended = None if is_open else "1 hour 10 minutes"
    connection.execute(
        text(
            "INSERT INTO migration.runs (id, state, grants, batch_size, tables, totals, created_at,"
            " started_at, finished_at) VALUES (:run, :state,"
            """ '{"student"\\: "100", "teacher"\\: "500", "*"\\: "100"}', 'auto',"""
            " ARRAY['users', 'gpt_subscriptions', 'projects'], jsonb_build_object('user',"
            " CAST(:users AS int), 'subscription', 3 * :users, 'project', :users),"
            " now() - interval '2 hours', now() - interval '2 hours',"
            " now() - interval '2 hours' + CAST(:ended AS interval))"
        ),
        {"run": RUN, "state": state, "users": USERS, "ended": ended},
    )
    names = ("organization", *_STAGES, "finish")
    for position, name in enumerate(names):
        standing = "done"
        if is_open and position:
            standing = "running" if name == "users" else "pending"
        connection.execute(
            text(
                "INSERT INTO migration.stages (run_id, direction, name, position, state,"
                " started_at, finished_at) VALUES (:run, 'forward', :name, :position, :state,"
                " now() - interval '2 hours' + :position * interval '10 minutes',"
                " CASE WHEN :state = 'done' THEN"
                "  now() - interval '2 hours' + (:position + 1) * interval '10 minutes' END)"
            ),
            {"run": RUN, "name": name, "position": position, "state": standing},
        )
        share, counts = _STAGES.get(name, (0.0, _FINAL if name == "finish" else "{}"))
        if is_open:
            counts = counts.replace("250", "100").replace("750", "300")
        if is_open and name not in ("organization", "users"):
            continue
        _batches(
            connection,
            name,
            number if is_open and name == "users" else max(1, int(number * share)),
            counts,
            position,
            is_open=standing == "running",
        )
    connection.execute(
        text(
            "INSERT INTO migration.quarantine (entity, legacy_key, run_id, reason, message)"
            " SELECT 'subscription', 'sub_' || n, :run, (ARRAY['gpt_id_blank', 'owner_missing',"
            " 'preferences_malformed'])[1 + n % 3], 'The row was generated.'"
            " FROM generate_series(1, 20000) AS n"
        ),
        {"run": RUN},
    )
    connection.exec_driver_sql("ANALYZE migration.batches, migration.quarantine, migration.stages")


def _batches(
    connection: Connection, stage: str, count: int, counts: str, position: int, *, is_open: bool
) -> None:
    """Batches in a row over the ten minutes of their stage; of an open one the last ones wait."""
    connection.execute(
        text(
            'INSERT INTO migration.batches (run_id, stage, step, "window", low, high, rows, state,'
            " attempt, lapses, worker, published_at, started_at, finished_at, lease_until, counts,"
            " error)"
            " SELECT :run, :stage, :stage, 1 + n / 256, 'k' || n, 'k' || n + 1, :rows, s.state,"
            " CASE s.state WHEN 'pending' THEN 0 ELSE 1 END, CASE n % 100 WHEN 7 THEN 1 ELSE 0 END,"
            " 'host-' || n % 8 || '/' || 1000 + n % 16, t.at, t.at,"
            " CASE WHEN s.state IN ('done', 'failed') THEN t.at + interval '0.9 seconds' END,"
            " CASE s.state WHEN 'running' THEN now() + interval '15 seconds' END,"
            " CASE s.state WHEN 'done' THEN CAST(:counts AS jsonb) ELSE '{}' END,"
            " CASE s.state WHEN 'failed' THEN 'DeadlockDetected (40P01)' END"
            " FROM generate_series(1, CAST(:count AS int)) AS n,"
            " LATERAL (SELECT CASE WHEN NOT :is_open THEN 'done' WHEN n % 500 = 9 THEN 'failed'"
            " WHEN n > 0.91 * :count THEN 'pending' WHEN n > 0.91 * :count - 8 THEN 'running'"
            " ELSE 'done' END AS state) AS s,"
            " LATERAL (SELECT now() - interval '2 hours'"
            " + (:position + n / CAST(:count AS float)) * interval '10 minutes' AS at) AS t"
        ),
        {"run": RUN, "stage": stage, "count": count, "counts": counts, "position": position,
         "is_open": is_open, "rows": 400 if is_open else 1000},
    )  # fmt: skip


def _calls(engine: Engine, settings: Settings) -> dict[str, Callable[[], object]]:
    """What reads the ledger: for people, for Prometheus, and for each window or round."""
    with engine.connect() as connection:
        run = connection.execute(text("SELECT * FROM migration.runs")).one()
        of_users = "SELECT * FROM migration.stages WHERE name = 'users'"
        stage = connection.execute(text(of_users)).one()
    step = current.migration().steps_of("users")[0]

    def within(action: Callable[[Connection], object]) -> Callable[[], None]:
        def call() -> None:
            with engine.begin() as connection:
                action(connection)

        return call

    return {
        "status": lambda: status.read(engine, RUN),
        "scrape": lambda: list(metrics.Ledger(engine).collect()),
        "size of a window": within(lambda c: windows._size(c, run, stage, step)),
        "open windows": within(lambda c: advance._open_windows(c, RUN, "users")),
        "waiting batches": within(lambda c: advance._publish_waiting(c, RUN, "users")),
        "failed batch": within(lambda c: advance._failed_batch(c, RUN, "users")),
        "expired leases": within(lambda c: reconciler._reopen_expired(c, settings)),
    }


def main(number: int) -> None:
    """Print the times of three calls each, on an open run with so many batches."""
    with open_site() as site:
        engine, settings = site.fresh("large"), load()
        with engine.begin() as connection:
            sample.load(connection, 1_000)
        upgrade.upgrade(engine, settings)
        with engine.begin() as connection:
            fill(connection, state="running", number=number)
        for name, call in _calls(engine, settings).items():
            taken = []
            for _ in range(3):
                began = time.monotonic()
                call()
                taken.append(round(1000 * (time.monotonic() - began), 1))
            print(json.dumps({"what": name, "ms": sorted(taken)}), flush=True)
        engine.dispose()


if __name__ == "__main__":
    main(int(sys.argv[1]))
