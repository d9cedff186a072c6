"""Whom the faults befall: users of a migrated database, each of them once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any

from sqlalchemy import Connection, text

from tests.acceptance.fault_list import FAULTS
from tests.acceptance.faults import Difference

# One type of user, since another type would be held against another grant.
_WHOLE = """
SELECT u.id AS user, s.id AS subscription, p.id AS project
FROM users u
CROSS JOIN LATERAL (
  SELECT s.id FROM gpt_subscriptions s JOIN ai_tools t ON t.id = 't-' || s.id
  WHERE s.user_id = u.id AND t.version IS NOT NULL AND NOT EXISTS (
    SELECT FROM ai_tools o WHERE o.suite_id = t.suite_id AND o.name = t.name AND o.id <> t.id)
  ORDER BY s.id LIMIT 1) AS s
CROSS JOIN LATERAL (
  SELECT p.id FROM projects p WHERE p.user_id = u.id AND p.active_gpt_id = 'p-' || p.id
  ORDER BY p.id LIMIT 1) AS p
WHERE u.user_type = 'student' AND NOT EXISTS (
  SELECT FROM gpt_subscriptions s JOIN migration.quarantine q ON q.legacy_key = s.id
  WHERE s.user_id = u.id)
ORDER BY u.id
"""
_BARE = """
SELECT s.user_id AS user FROM ai_suites s
WHERE NOT EXISTS (SELECT FROM ai_tools t WHERE t.suite_id = s.id) ORDER BY 1
"""
_BAD = """
SELECT s.user_id AS user, s.id AS subscription
FROM gpt_subscriptions s JOIN migration.quarantine q
  ON q.entity = 'subscription' AND q.legacy_key = s.id
WHERE q.reason {reason} ORDER BY s.id
"""
_BAD_USERS = "SELECT legacy_key AS user FROM migration.quarantine WHERE entity = 'user' ORDER BY 1"


class Victims:
    """Rows of users of whom each is given out once, in an order of the seed's own."""

    def __init__(self, connection: Connection, seed: int) -> None:
        queries = {
            "whole": _WHOLE,
            "bare": _BARE,
            "bad user": _BAD_USERS,
            "bad subscription": _BAD.format(reason="NOT LIKE 'owner%'"),
            "orphan": _BAD.format(reason="= 'owner_missing'"),
        }
        self._taken: set[str] = set()
        self._made = 0
        self._pools: dict[str, Iterator[dict[str, Any]]] = {}
        for name, query in queries.items():
            rows = [dict(row._mapping) for row in connection.execute(text(query))]
            Random(seed).shuffle(rows)
            self._pools[name] = iter(rows)

    def take(self, pool: str) -> dict[str, Any] | None:
        """The values of the next victim; None when the pool is empty."""
        name = pool.removesuffix("pair").strip() or "whole"
        row = next((row for row in self._pools[name] if row["user"] not in self._taken), None)
        if row is None:
            return None
        self._taken.add(row["user"])
        self._made += 1
        values = row | {
            "made": f"made-{self._made}",
            "stray": f"t-nobody-{self._made}",
            "suite": f"s-{row['user']}",
            "grant": f"g-{row['user']}",
        }
        if "subscription" in row:
            values |= {"tool": f"t-{row['subscription']}", "usage": f"u-{row['subscription']}"}
        if "project" in row:
            values["project_tool"] = f"p-{row['project']}"
        if pool.endswith("pair"):
            other = self.take(name)
            assert other is not None
            values |= {"other": other["user"], "other_suite": other["suite"]}
        return values


def plant(
    connection: Connection, count: int, seed: int
) -> tuple[Counter[Difference], set[Difference]]:
    """Plant so many faults, in turn, a victim each; returns what must be found, and what may."""
    connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
    victims = Victims(connection, seed)
    wanted: Counter[Difference] = Counter()
    echoes: set[Difference] = set()
    planted = 0
    while planted < count:
        for fault in FAULTS:
            values = victims.take(fault.pool)
            if values is None or planted == count:
                continue
            for statement in fault.statements:
                assert connection.execute(text(statement), values).rowcount == 1, statement
            for kind, entity, key, table, detail in fault.finds:
                wanted[kind, entity, values[key], table, detail] += 1
            for kind, entity, key, table, detail in fault.echo:
                echoes.add((kind, entity, values[key], table, detail))
            planted += 1
    return wanted, echoes
