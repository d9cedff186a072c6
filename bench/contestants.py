"""The contestants, each from a fresh copy of one legacy database to its last commit, in seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import Engine, text

from bench import guide, script
from bench.usage import Usage
from tests.soak.site import Site, kill, rows, workers

# What every contestant must have written; the product's ledger comes on top.
_WRITTEN = """
SELECT (SELECT count(*) FROM ai_suites) AS ai_suites, (SELECT count(*) FROM ai_tools) AS ai_tools,
  (SELECT count(*) FROM tool_assignments) AS tool_assignments,
  (SELECT count(*) FROM tool_usage_logs) AS tool_usage_logs,
  (SELECT count(*) FROM credit_logs) AS credit_logs,
  (SELECT sum(amount) FROM credit_logs) AS credits,
  (SELECT sum(credits_balance) FROM users) AS balances,
  (SELECT count(*) FROM projects WHERE active_gpt_id LIKE 'p-%' AND NOT is_template) AS switched
"""
_STEPS = """
SELECT stage, step, count(*) AS batches, sum(rows) AS rows, max(rows) AS largest,
  round(sum(extract(epoch FROM finished_at - started_at)), 3)::float AS busy,
  round(extract(epoch FROM max(finished_at) - min(started_at)), 3)::float AS wall
FROM migration.batches GROUP BY stage, step ORDER BY min(id)
"""


@dataclass
class Result:
    """Seconds from start to end, and what the contestant tells beside that."""

    seconds: float
    more: dict[str, Any] = field(default_factory=dict)


def single(site: Site, engine: Engine) -> Result:
    """The hand-written script in one session, foreign keys in place."""
    return _timed(lambda: script.run_single(engine))


def limit(site: Site, engine: Engine) -> Result:
    """The script in two sessions, keys and indexes after the load."""
    return _timed(lambda: script.run_limit(engine))


def loop(site: Site, engine: Engine) -> Result:
    """The guide's loop."""
    return _timed(lambda: guide.run(engine))


def task_a_user(site: Site, engine: Engine) -> Result:
    """One Celery task a user, a commit a call."""
    return _tasks(site, engine, in_one=False)


def task_in_one(site: Site, engine: Engine) -> Result:
    """One Celery task a user, a commit a task."""
    return _tasks(site, engine, in_one=True)


def product(site: Site, engine: Engine) -> Result:
    """`producer enqueue-all --wait`, two workers of one process each standing by."""
    for log in _logs(site):
        log.unlink(missing_ok=True)
    with workers(site, 2) as standing:
        _until_ready(site)
        with Usage(site, engine, standing) as usage:
            started = time.monotonic()
            producer = site.producer("enqueue-all", "--wait", "--json")
            usage.watch("producer", producer)
            output = producer.communicate()[0]
            seconds = time.monotonic() - started
    report = json.loads(output)
    if report["state"] != "completed":
        raise SystemExit(f"The run ended as {report['state']}: {report['error']}")
    stages = {stage["name"]: stage["seconds"] for stage in report["stages"]}
    steps = [dict(row._mapping) for row in rows(engine, _STEPS)]
    return Result(seconds, {"stages": stages, "steps": steps, "usage": usage.measured})


def _of_size(rows: int) -> Callable[[Site, Engine], Result]:
    def fixed(site: Site, engine: Engine) -> Result:
        os.environ["MIGRATION_BATCH_SIZE"] = str(rows)
        try:
            return product(site, engine)
        finally:
            del os.environ["MIGRATION_BATCH_SIZE"]

    return fixed


def written(engine: Engine) -> dict[str, Any]:
    """Counts and sums that must be the same for each contestant."""
    return {name: str(value) for name, value in rows(engine, _WRITTEN)[0]._mapping.items()}


ALL: dict[str, Callable[[Site, Engine], Result]] = {
    "product": product,
    "script": single,
    "limit": limit,
    "guide": loop,
    "task a user": task_a_user,
    "task a user, one commit": task_in_one,
}
# The product with batches of a fixed size, to hold `auto` against; run by name only.
FIXED = {f"product, {rows} a batch": _of_size(rows) for rows in (2_000, 5_000, 10_000, 20_000)}
# A row a statement: these run at a size that ends within a minute.
SLOW = ("guide", "task a user", "task a user, one commit")


def _timed(action: Callable[[], None]) -> Result:
    started = time.monotonic()
    action()
    return Result(time.monotonic() - started)


def _tasks(site: Site, engine: Engine, *, in_one: bool) -> Result:
    guide.prepare(engine)
    environment = site.environment | {"BENCH_BROKER": _broker(site)}
    log = (site.home / "one-task.log").open("ab")
    command = [sys.executable, "-m", "celery", "-A", "bench.one_task"]
    worker = psutil.Popen(
        [*command, "worker", "--concurrency=2", "--loglevel=WARNING"],
        env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    try:
        os.environ["BENCH_BROKER"] = environment["BENCH_BROKER"]
        from bench import one_task

        one_task.app.conf.broker_url = environment["BENCH_BROKER"]
        while not one_task.app.control.ping(timeout=0.5):
            if worker.poll() is not None:
                raise SystemExit(f"The worker of one task a user ended: see {log.name}")
        started = time.monotonic()
        # Users first: a project's tool goes into its owner's suite.
        for table, task, done in (
            ("users", one_task.migrate_user, "credits_balance IS NULL"),
            ("projects", one_task.migrate_project, "is_template IS NULL"
             " OR active_gpt_id NOT LIKE 'p-%' AND btrim(active_gpt_id) <> ''"),
        ):  # fmt: skip
            for row in rows(engine, f"SELECT id FROM {table} ORDER BY id"):
                task.delay(row.id, in_one)
            while rows(engine, f"SELECT EXISTS (SELECT FROM {table} WHERE {done})")[0][0]:
                time.sleep(0.05)
        with engine.begin() as connection:
            connection.execute(text(script.DEFAULTS))
        return Result(time.monotonic() - started)
    finally:
        kill(worker)


def _broker(site: Site) -> str:
    from producer.connect import celery_url

    return celery_url(site.servers.redis_url)


def _logs(site: Site) -> list[Path]:
    return [site.home / f"worker-{number}.log" for number in range(2)]


def _until_ready(site: Site) -> None:
    """Wait until both workers have written that they are ready."""
    end = time.monotonic() + 60
    while not all(log.exists() and " ready." in log.read_text() for log in _logs(site)):
        if time.monotonic() > end:
            raise SystemExit("The workers did not start")
        time.sleep(0.1)
