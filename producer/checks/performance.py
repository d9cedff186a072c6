"""Response times of the dashboard's endpoints, and of what it asks the new tables.

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
from models.messages import Speed
from models.postgres.database import classify, sqlstate, transaction
from models.settings import Settings
from producer.checks.http import ask_all
from producer.reports import status

REPETITIONS = 20
URL_LIMIT_SECONDS, QUERY_LIMIT_SECONDS = 1.0, 0.1
# What is so slow is not asked again.
GIVE_UP_SECONDS = 5.0

# A page of the dashboard each, for the user :user, as its guide to the new features has them.
QUERIES = {
    "suites of a user": """
        SELECT s.id, s.name, s.configuration FROM {ai_suites} s
        WHERE s.user_id = :user AND s.is_active ORDER BY s.created_at""",
    "tools of a user's suites": """
        SELECT t.id, t.name, t.tool_type, t.configuration FROM {ai_suites} s
        JOIN {ai_tools} t ON t.suite_id = s.id WHERE s.user_id = :user AND t.is_active
        ORDER BY t.name""",
    "tools assigned to a user": """
        SELECT t.id, t.name, a.permissions, a.expires_at FROM {tool_assignments} a
        JOIN {ai_tools} t ON t.id = a.tool_id WHERE a.user_id = :user""",
    "a user's latest usage": """
        SELECT l.id, l.action, l.credits_used, l.started_at FROM {tool_usage_logs} l
        WHERE l.user_id = :user ORDER BY l.started_at DESC LIMIT 50""",
    "usage of a user's tools": """
        SELECT l.tool_id, count(*), sum(l.credits_used) FROM {ai_suites} s
        JOIN {ai_tools} t ON t.suite_id = s.id JOIN {tool_usage_logs} l ON l.tool_id = t.id
        WHERE s.user_id = :user GROUP BY l.tool_id""",
    "a user's balance and credit log": """
        SELECT u.credits_balance, c.operation, c.amount, c.balance_after FROM {users} u
        LEFT JOIN {credit_logs} c ON c.user_id = u.id WHERE u.id = :user
        ORDER BY c.created_at DESC LIMIT 50""",
    "colleagues in a user's department": """
        SELECT o.id, o.user_type FROM {users} u
        JOIN {users} o ON o.department_id = u.department_id WHERE u.id = :user LIMIT 50""",
    "projects of a user with their tools": """
        SELECT p.id, t.name FROM {projects} p LEFT JOIN {ai_tools} t ON t.id = p.active_gpt_id
        WHERE p.user_id = :user""",
    "newest listings of the marketplace": """
        SELECT m.id, m.title FROM {marketplace_listings} m WHERE m.is_public
        ORDER BY m.created_at DESC LIMIT 50""",
}


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
        users = _some_users(connection, context)
        if not users:
            raise Incompatible("There are no users to ask for")
        found = []
        for name, query in QUERIES.items():
            statement = context.render(query)
            times = _time(connection, statement, users)
            speed = _judged("query", name, times, QUERY_LIMIT_SECONDS)
            if speed.verdict == "failed":
                speed = speed.model_copy(update={"plan": _explain(connection, statement, users[0])})
            found.append(speed)
    return found


def _some_users(connection: Connection, context: Context) -> list[object]:
    """Users from all over the table, so that not one page of it is asked for again and again."""
    table = context.sources.users.sql
    found = connection.scalars(
        sa.text(f"SELECT u.id FROM {table} u TABLESAMPLE SYSTEM (1) LIMIT :count"),
        {"count": REPETITIONS},
    ).all()
    if len(found) < REPETITIONS:
        found = connection.scalars(
            sa.text(f"SELECT u.id FROM {table} u ORDER BY u.id LIMIT :count"),
            {"count": REPETITIONS},
        ).all()
    return list(found)


def _time(connection: Connection, statement: str, users: list[object]) -> _Times:
    seconds: list[float] = []
    for number in range(REPETITIONS):
        started = time.monotonic()
        try:
            with connection.begin_nested():
                connection.exec_driver_sql(
                    f"SET LOCAL statement_timeout = {int(GIVE_UP_SECONDS * 1000)}"
                )
                started = time.monotonic()
                user = users[number % len(users)]
                connection.execute(sa.text(statement), {"user": user}).all()
        except DBAPIError as failure:
            seconds.append(time.monotonic() - started)
            late = sqlstate(failure) == "57014"
            why = f"no answer within {GIVE_UP_SECONDS:g} s" if late else classify(failure).message
            return _Times(seconds, why)
        seconds.append(time.monotonic() - started)
    return _Times(seconds)


def _explain(connection: Connection, statement: str, user: object) -> list[str]:
    try:
        with connection.begin_nested():
            rows = connection.execute(sa.text(f"EXPLAIN {statement}"), {"user": user})
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
