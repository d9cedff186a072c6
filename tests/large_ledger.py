"""A ledger as a run over a million users leaves it, or has halfway: ten thousand batches.

`python -m tests.large_ledger 500000` times what reads a larger one, ten times each. It measures the
CPU time of both sides, too, which depends less on what else the machine does.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from statistics import median

import psutil
from sqlalchemy import Connection, Engine, text

from models.engine import current
from models.ledger import claims, sums
from models.postgres.database import transaction
from models.settings import Settings, load
from producer.demo import sample
from producer.notices import due
from producer.reports import metrics, status
from producer.runs import advance, budget, reconciler, windows
from producer.schema import upgrade
from tests.soak.site import open_site

Processes = Callable[[], list[psutil.Process]]

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
    """Batches in a row over the ten minutes of their stage.

    Of an open one there were a hundred a second, and the last two windows are under way.
    """
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
            " LATERAL (SELECT CASE WHEN NOT :is_open OR n <= :count - 600 THEN 'done'"
            " WHEN n > :count - 500 THEN 'pending' WHEN n > :count - 510 THEN 'running'"
            " WHEN n % 30 = 9 THEN 'failed' ELSE 'done' END AS state) AS s,"
            " LATERAL (SELECT CASE WHEN :is_open THEN now() - (:count - n) * interval '10 ms'"
            " ELSE now() - interval '2 hours'"
            " + (:position + n / CAST(:count AS float)) * interval '10 minutes' END AS at) AS t"
        ),
        {"run": RUN, "stage": stage, "count": count, "counts": counts, "position": position,
         "is_open": is_open, "rows": 400 if is_open else 1000},
    )  # fmt: skip


def _calls(engine: Engine, settings: Settings) -> dict[str, Callable[[], object]]:
    """What reads the ledger: for people, for Prometheus, and for each batch, window or round."""
    with engine.connect() as connection:
        run = connection.execute(text("SELECT * FROM migration.runs")).one()
        of_users = "SELECT * FROM migration.stages WHERE name = 'users'"
        stage = connection.execute(text(of_users)).one()
    step = current.migration().steps_of("users")[0]
    waiting = text("SELECT max(id) FROM migration.batches WHERE state = 'pending'")

    def within(action: Callable[[Connection], object]) -> Callable[[], None]:
        def call() -> None:
            with transaction(engine) as connection:
                action(connection)
                connection.rollback()

        return call

    def work(connection: Connection) -> None:
        claim = claims.claim(connection, RUN, connection.scalar(waiting), "host-1/1")
        assert claim is not None
        claims.complete(connection, claim, {})

    return {
        "status": lambda: status.read(engine, RUN),
        "a page of the console": lambda: status.look(engine, RUN),
        "scrape": lambda: list(metrics.Ledger(engine).collect()),
        "backlog": within(lambda c: c.execute(text("SELECT * FROM migration.backlog")).all()),
        "advance": within(lambda c: advance._advance(c, settings, RUN)),
        "size of a window": within(lambda c: windows._size(c, run, stage, step)),
        "stages": within(lambda c: advance.read_stages(c, run)),
        "waiting batches": within(lambda c: advance._publish_waiting(c, RUN, "users")),
        "error budget": within(lambda c: budget.enforce(c, patient(settings), RUN)),
        "expired leases": within(lambda c: reconciler._reopen_expired(c, settings)),
        "lost messages": within(reconciler._take_lost),
        "idle run": within(lambda c: c.execute(due._IDLE, {"minutes": 10})),
        "claim and completion": within(work),
    }


def _sum_up(engine: Engine) -> None:
    with transaction(engine) as connection:
        sums.fold(connection, RUN)


def patient(settings: Settings) -> Settings:
    """Settings whose error budget is never spent."""
    return settings.model_copy(update={"error_budget": 1_000_000})


def _measure(what: str, calls: Iterable[Callable[[], object]], processes: Processes) -> None:
    """Print what calls took: the median, the longest, and the CPU time of one, in milliseconds."""
    taken: list[float] = []
    watched = processes()
    before = _cpu(watched)
    for call in calls:
        began = time.monotonic()
        call()
        taken.append(1000 * (time.monotonic() - began))
    cpu = (_cpu(watched) - before) / len(taken)
    found = {"median": median(taken), "longest": max(taken), "cpu": 1000 * cpu}
    print(json.dumps({"what": what} | {k: round(v, 1) for k, v in found.items()}), flush=True)


def _cpu(server_first: list[psutil.Process]) -> float:
    """Seconds of these, and of those that the server has had: helpers of parallel statements."""
    found = [process.cpu_times() for process in server_first]
    helpers = found[0].children_user + found[0].children_system
    return helpers + sum(times.user + times.system for times in found)


def _go_back(engine: Engine) -> None:
    """As when the last minute's batches were the newest: those are not summed up yet."""
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE migration.stages SET summed_to = summed_to - 6000 WHERE name = 'users';"
            " UPDATE migration.batches b SET finished_at = now() - interval '5 seconds'"
            " FROM migration.stages s WHERE s.name = b.stage AND b.id > s.summed_to"
            " AND b.state = 'done' AND s.state = 'running'"
        )


def main(number: int) -> None:
    """Print the times of ten calls each, on an open run with so many batches."""
    with open_site() as site:
        engine, settings = site.fresh("large"), patient(load())
        os.environ.update(site.environment)
        with engine.begin() as connection:
            sample.load(connection, 1_000)
        upgrade.upgrade(engine, settings)
        with engine.begin() as connection:
            fill(connection, state="running", number=number)
        identities = text(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
            " AND backend_type = 'client backend'"
        )

        def processes() -> list[psutil.Process]:
            with engine.connect() as connection:
                sessions = list(map(psutil.Process, connection.scalars(identities)))
            return [sessions[0].parent(), psutil.Process(), *sessions]

        summing = partial(_sum_up, engine)
        _measure("summing up", [summing] * (number // sums.AT_ONCE + 1), processes)
        _go_back(engine)
        for name, call in _calls(engine, settings).items():
            call()
            _measure(name, [call] * 10, processes)
        engine.dispose()


if __name__ == "__main__":
    main(int(sys.argv[1]))
