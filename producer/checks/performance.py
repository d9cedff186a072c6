"""Response times of the application's endpoints, and of what it asks the new tables.

Each is asked again and again; the slowest decides, against the guide's limits.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from models.engine.step import Context
from models.errors import Incompatible
from models.postgres.database import classify, sqlstate, transaction
from models.reports.checks import Speed
from models.settings import Settings
from producer.checks.http import ask_all
from producer.reports import status

REPETITIONS = 20
URL_LIMIT_SECONDS, QUERY_LIMIT_SECONDS = 1.0, 0.1
# What is so slow is not asked again.
GIVE_UP_SECONDS = 5.0


@dataclass(frozen=True)
class _Times:
    seconds: list[float]
    trouble: str = ""


def measure(engine: Engine, settings: Settings) -> list[Speed]:
    """The endpoints of the settings, then the queries; raises Incompatible before a migration."""
    return [*_urls(settings), *_queries(engine, settings)]


def _urls(settings: Settings) -> list[Speed]:
    times: dict[str, list[float]] = {url: [] for url in settings.api_urls}
    trouble: dict[str, str] = {}
    labels: dict[str, str] = {}
    for _ in range(REPETITIONS):
        # One after the other: together they would slow each other down.
        for url in settings.api_urls:
            if url in trouble:
                continue
            (answer,) = ask_all([url], GIVE_UP_SECONDS)
            labels[url] = answer.label
            times[url].append(answer.seconds)
            if not answer.is_right:
                trouble[url] = answer.said
    return [
        _judged("url", labels[url], _Times(times[url], trouble.get(url, "")), URL_LIMIT_SECONDS)
        for url in settings.api_urls
    ]


def _queries(engine: Engine, settings: Settings) -> list[Speed]:
    with transaction(engine) as connection:
        connection.exec_driver_sql("SET TRANSACTION READ ONLY")
        run = status.find_run(connection, None)
        context = Context.read(connection, settings, run)
        keys = _some_keys(connection, context)
        if not keys:
            raise Incompatible(f"There are no {context.sources.first.source.plural} to ask for")
        found = []
        for name, query in context.migration.queries.items():
            statement = context.render(query)
            times = _time(connection, statement, keys)
            speed = _judged("query", name, times, QUERY_LIMIT_SECONDS)
            if speed.verdict == "failed":
                speed = speed.model_copy(update={"plan": _explain(connection, statement, keys[0])})
            found.append(speed)
    return found


def _some_keys(connection: Connection, context: Context) -> list[object]:
    """Keys of the first source, from all over it: not one page is asked for again and again."""
    table = context.sources.first
    key, parameters = table.key_of("t"), {"count": REPETITIONS}
    sample = f"SELECT {key} FROM {table.sql} t TABLESAMPLE SYSTEM (1) LIMIT :count"
    found = connection.scalars(sa.text(sample), parameters).all()
    if len(found) < REPETITIONS:
        first = f"SELECT {key} FROM {table.sql} t ORDER BY {key} LIMIT :count"
        found = connection.scalars(sa.text(first), parameters).all()
    return list(found)


def _time(connection: Connection, statement: str, keys: list[object]) -> _Times:
    seconds: list[float] = []
    for number in range(REPETITIONS):
        started = time.monotonic()
        try:
            with connection.begin_nested():
                connection.exec_driver_sql(
                    f"SET LOCAL statement_timeout = {int(GIVE_UP_SECONDS * 1000)}"
                )
                started = time.monotonic()
                values = {"key": keys[number % len(keys)]}
                connection.execute(sa.text(statement), values).all()
        except DBAPIError as failure:
            seconds.append(time.monotonic() - started)
            late = sqlstate(failure) == "57014"
            why = f"no answer within {GIVE_UP_SECONDS:g} s" if late else classify(failure).message
            return _Times(seconds, why)
        seconds.append(time.monotonic() - started)
    return _Times(seconds)


def _explain(connection: Connection, statement: str, key: object) -> list[str]:
    try:
        with connection.begin_nested():
            rows = connection.execute(sa.text(f"EXPLAIN {statement}"), {"key": key})
            return [str(row[0]) for row in rows]
    except DBAPIError as failure:
        return [classify(failure).message]


def _judged(kind: str, name: str, times: _Times, limit: float) -> Speed:
    slowest = max(times.seconds)
    ordered = sorted(times.seconds)
    # The nearest rank: https://en.wikipedia.org/wiki/Percentile#The_nearest-rank_method
    rank = -(-95 * len(ordered) // 100) - 1
    return Speed(
        kind=kind,
        name=name,
        verdict="failed" if times.trouble or slowest >= limit else "ok",
        repetitions=len(ordered),
        median=round(statistics.median(ordered), 4),
        p95=round(ordered[rank], 4),
        maximum=round(slowest, 4),
        limit=limit,
        trouble=times.trouble,
    )
