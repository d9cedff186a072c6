"""`python -m bench.overhead`: what ledger, quarantine and fencing cost a page of users.

The engine's own way through a batch, against the very same statement alone: no claim, no lease, no
ledger row, no quarantine. Both write the same rows, in one session, on copies of one school.
"""

from __future__ import annotations

import json
import logging
import statistics
import time
from dataclasses import replace
from unittest import mock

import click
import sqlalchemy as sa
import structlog
from sqlalchemy import Engine

from bench.contestants import written
from models.dashboard.users import statement
from models.engine import current
from models.engine.step import Context, Scope
from models.ledger.tables import batches, runs
from models.postgres import sessions
from models.postgres.database import transaction
from models.settings import load
from producer.demo import sample
from producer.runs import advance
from tests.driving import start
from tests.soak.site import open_site
from worker import batch

ROWS = 4_000


@click.command()
@click.option("--users", "number", type=click.IntRange(1000), default=40_000, show_default=True)
@click.option("--repetitions", type=click.IntRange(1), default=5, show_default=True)
def main(number: int, repetitions: int) -> None:
    """Time both over the same pages, in turn; prints medians in seconds, and their ratio."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    found: dict[str, list[float]] = {"engine": [], "bare": []}
    with open_site() as site, mock.patch.object(advance, "publish_window"):
        legacy = site.fresh("legacy")
        with legacy.begin() as connection:
            sample.load(connection, number, dirty=False)
        legacy.dispose()
        # In the order A B B A: whatever comes with the order strikes both alike.
        for name in (("engine", "bare", "bare", "engine") * repetitions)[: 2 * repetitions]:
            engine = site.fresh("overhead", template="legacy")
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql("CHECKPOINT")
            found[name].append(_once(engine, bare=name == "bare"))
            suites = int(written(engine)["ai_suites"])
            engine.dispose()
            assert suites == number, suites
    medians = {name: round(statistics.median(times), 3) for name, times in found.items()}
    ratio = round(medians["engine"] / medians["bare"], 3)
    click.echo(json.dumps({"users": number, "rows_a_batch": ROWS, **medians, "ratio": ratio}))


def _once(engine: Engine, *, bare: bool) -> float:
    settings = load().model_copy(update={"batch_size": ROWS})
    run_id = start(engine, settings)
    took = 0.0
    while True:
        advance.advance(engine, settings, run_id)
        with engine.connect() as connection:
            waiting = connection.execute(
                sa.select(batches).where(batches.c.state == "pending").order_by(batches.c.id)
            ).all()
        pages = [row for row in waiting if row.step == "users"]
        if not waiting or waiting[0].stage not in ("organization", "users"):
            return took
        started = time.monotonic()
        for row in pages:
            if bare:
                _bare(engine, run_id, Scope(row.low, row.high, is_optimistic=True))
            else:
                batch.run(engine, settings, run_id, row.id, "bench")
        took += time.monotonic() - started
        for row in waiting:
            batch.run(engine, settings, run_id, row.id, "bench") if row not in pages else None
        if bare and pages:
            with engine.begin() as connection:
                ids = [row.id for row in pages]
                done = sa.update(batches).where(batches.c.id.in_(ids)).values(state="done")
                connection.execute(done)


def _bare(engine: Engine, run_id: str, scope: Scope) -> None:
    """The statement alone, without the parts of it that quarantine rows or close their entries."""
    bare = statement.MIGRATE.replace("," + statement._QUARANTINE, "")
    with transaction(engine) as connection, mock.patch.object(statement, "MIGRATE", bare):
        connection.exec_driver_sql(sessions.BATCH_PLANNING)
        context = _context(engine, run_id)
        current.migration().step("users").apply(replace(context, connection=connection), scope)


_contexts: dict[str, Context] = {}


def _context(engine: Engine, run_id: str) -> Context:
    if run_id not in _contexts:
        with engine.connect() as connection:
            run = connection.execute(sa.select(runs).where(runs.c.id == run_id)).one()
            _contexts[run_id] = Context.read(connection, load(), run)
    return _contexts[run_id]


if __name__ == "__main__":
    main()
