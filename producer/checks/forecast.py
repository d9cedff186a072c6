"""Which rows a run would quarantine, told before it: how many, their keys, and queries for them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine, text

from models.engine import current
from models.engine.checks.answers import Rule
from models.engine.source import Sources
from models.postgres import sessions
from models.postgres.catalog import literal
from models.postgres.database import transaction
from models.settings import Settings

READ_MS = 600_000
_COUNT = """
SELECT reason, count(*) FROM (SELECT {reason} AS reason FROM {rows}) AS judged
WHERE reason IS NOT NULL GROUP BY reason
"""
_KEYS = """
SELECT key, reason FROM (
  SELECT judged.*, row_number() OVER (PARTITION BY reason ORDER BY key) AS number
  FROM (SELECT {key} AS key, {reason} AS reason FROM {rows}) AS judged
  WHERE reason IS NOT NULL AND reason = coalesce(:reason, reason)
) AS numbered
WHERE number <= coalesce(:limit, number) ORDER BY reason, key
"""
_QUERY = "SELECT {alias}.* FROM {rows} WHERE {reason} = {wanted};"


def count(connection: Connection, sources: Sources) -> tuple[dict[str, int], str]:
    """How many rows by reason, and what cannot be told before the run.

    Reads the source tables from end to end.
    """
    rules, unsure = current.migration().forecast(connection, sources)
    found: dict[str, int] = {}
    for rule in rules.values():
        statement = text(_COUNT.format(reason=rule.reason, rows=rule.rows))
        for reason, number in connection.execute(statement, _values(connection, rule)):
            found[reason] = found.get(reason, 0) + number
    return dict(sorted(found.items())), unsure


def preview(
    engine: Engine, settings: Settings, reason: str | None, entity: str | None, limit: int | None
) -> tuple[list[dict[str, Any]], dict[str, str], str]:
    """The rows themselves, as `producer quarantine` lists them, at most `limit` of each reason.

    Also the query that finds them, by `entity reason`, and what cannot be told before the run.
    Raises what is wrong with the source tables.
    """
    found: list[dict[str, Any]] = []
    queries: dict[str, str] = {}
    with transaction(engine, statement_timeout_ms=READ_MS) as connection:
        sources = current.migration().read(connection, settings)
        rules, unsure = current.migration().forecast(connection, sources)
        for name, rule in rules.items():
            if entity not in (None, name):
                continue
            key = f"{sources[name].key_of(rule.alias)}::text"
            statement = text(_KEYS.format(key=key, reason=rule.reason, rows=rule.rows))
            values = _values(connection, rule) | {"reason": reason, "limit": limit}
            for row in connection.execute(statement, values):
                found.append(
                    {
                        "entity": name,
                        "key": row.key,
                        "reason": row.reason,
                        "message": "A run would quarantine it.",
                        "attempts": 0,
                        "state": "preview",
                    }
                )
                queries[f"{name} {row.reason}"] = _query(connection, rule, row.reason)
    return found, queries, unsure


def _values(connection: Connection, rule: Rule) -> dict[str, Any]:
    uses = ":blanks" in rule.reason
    return {"blanks": sessions.blanks(connection)} if uses else {}


def _query(connection: Connection, rule: Rule, reason: str) -> str:
    """A query to paste into psql, on one line."""
    blanks = "".join(f"\\{ord(blank):04x}" for blank in sessions.blanks(connection))
    sql = _QUERY.format(
        alias=rule.alias, rows=rule.rows, reason=rule.reason, wanted=literal(reason)
    )
    return " ".join(sql.replace(":blanks", f"U&'{blanks}'").split())
