"""Rows that break a rule, also the application's: warnings, never differences."""

from __future__ import annotations

import time

import sqlalchemy as sa
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from models.engine.step import Context
from models.errors import MigrationError, TooBig, UnknownRun
from models.ledger import revision
from models.ledger.tables import COMPLETED_STATES
from models.postgres.database import classify, transaction
from models.reports.checks import Check
from models.settings import Settings
from producer.checks.verdicts import ok, unknown, warning
from producer.reports import status

NAME = "data integrity"
# Keys that a warning names; its query lists all.
SHOWN = 3
VERIFY = "It has more time: producer verify --wait"
_FOUND = """
SELECT count(*) AS rows, (array_agg(key))[1:{shown}] AS first
FROM (SELECT key::text FROM ({query}) AS broken (key) ORDER BY key) AS found
"""


def examine(
    engine: Engine, settings: Settings, *, seconds: int, most_rows: int | None = None
) -> list[Check]:
    """A warning for each rule that rows break, with the query that lists them; `ok` for none.

    `unknown` while no run is complete, for rules that are not counted within so many seconds, and
    for all of them where the tables have more rows.
    """
    try:
        with transaction(engine) as connection:
            connection.exec_driver_sql("SET TRANSACTION READ ONLY")
            revision.require(connection)
            run = status.find_run(connection, None)
            if run.state not in (*COMPLETED_STATES, "failed"):
                found = [unknown(f"not looked at: run {run.id} is {run.state}")]
            else:
                context = Context.read(connection, settings, run)
                rows = _estimate(connection, context)
                found = (
                    [unknown(f"not counted: about {rows:,} rows", VERIFY)]
                    if most_rows is not None and rows > most_rows
                    else _broken(connection, context, seconds)
                )
    except UnknownRun as none:
        found = [unknown(none.message)]
    except (MigrationError, DBAPIError) as failure:
        error = classify(failure) if isinstance(failure, DBAPIError) else failure
        found = [unknown(f"could not be read: {error.message}", error.hint)]
    return [check.model_copy(update={"name": check.name or NAME}) for check in found]


def _estimate(connection: Connection, context: Context) -> int:
    """The rows of all tables, as the planner's statistics have them."""
    tables = [*context.sources.values(), *context.target.tables.values()]
    query = sa.text("SELECT sum(greatest(reltuples, 0)) FROM pg_class WHERE oid = ANY(:oids)")
    return int(connection.scalar(query, {"oids": [table.oid for table in tables]}) or 0)


def _broken(connection: Connection, context: Context, seconds: int) -> list[Check]:
    rules, until = context.migration.integrity, time.monotonic() + seconds
    found, left = [], []
    for name, query in rules.items():
        listing = " ".join(context.render(query).split())
        rest = int(1000 * (until - time.monotonic()))
        if rest <= 0:
            left.append(name)
            continue
        try:
            with connection.begin_nested():
                connection.exec_driver_sql(f"SET LOCAL statement_timeout = {rest}")
                statement = sa.text(_FOUND.format(query=listing, shown=SHOWN))
                row = connection.execute(statement).one()
        except DBAPIError as failure:
            if not isinstance(classify(failure), TooBig):
                raise
            left.append(name)
            continue
        if row.rows:
            more = " and more" if row.rows > SHOWN else ""
            said = warning(f"{row.rows:,}: {', '.join(row.first)}{more}", f"List them: {listing}")
            found.append(said.model_copy(update={"name": name}))
    if left:
        late = f"not counted within {seconds} s: {', '.join(left)}"
        found.append(unknown(late, VERIFY))
    return found or [ok(f"{len(rules)} rules hold for all rows")]
