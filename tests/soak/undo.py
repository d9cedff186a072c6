"""A run undone in peace, then after thousands of edits and under kills; then migrated again."""

from __future__ import annotations

import random
import time
from typing import Any

import psutil
from sqlalchemy import Engine, text

from tests.soak.site import Site, finish, kill, load, rows, workers

KILLS = 5
# How many rows of each kind an application edits: (what, table, key, statement). The ids come from
# disjoint ranges of the table, so that no row is edited twice.
EDITS = (
    ("users.billing_tier changed", 1_000, "users", "billing_tier = 'premium'"),
    ("users.is_active changed", 500, "users", "is_active = false"),
    ("ai_tools changed", 1_000, "ai_tools", "description = 'mine', updated_at = now()"),
    ("ai_suites changed", 500, "ai_suites", "description = 'mine'"),
)
HANGING = 1_000
SPENT = 1_000

_HANG = """
INSERT INTO tool_usage_logs (id, user_id, tool_id, action)
SELECT 'theirs ' || l.id, l.user_id, l.tool_id, 'chat' FROM tool_usage_logs l
WHERE l.action = 'migration' ORDER BY md5(l.id || 'hang') LIMIT :count
"""
_SPEND = """
WITH spent AS (
  UPDATE users u SET credits_balance = u.credits_balance - 1
  WHERE u.id IN (SELECT id FROM users WHERE user_type IS NOT NULL
                 ORDER BY md5(id || 'spend') LIMIT :count) RETURNING u.id, u.credits_balance
)
INSERT INTO credit_logs (id, user_id, operation, amount, balance_after)
SELECT 'spent ' || id, id, 'deduct', 1, credits_balance FROM spent
"""
LEGACY = ("users", "gpt_subscriptions", "projects")
# Whatever is there, but for columns that only a migration fills: a hash a row.
_HASHES = {
    table: f"SELECT count(*), sum(hashtextextended(({columns})::text, 0)) FROM {table} t"
    for table, columns in {
        "users": "jsonb_strip_nulls(to_jsonb(t))",
        "gpt_subscriptions": "t",
        "projects": "jsonb_strip_nulls(to_jsonb(t))",
        **{
            name: "t"
            for name in (
                "organizations",
                "departments",
                "ai_suites",
                "ai_tools",
                "tool_assignments",
                "tool_usage_logs",
                "marketplace_listings",
                "credit_logs",
            )
        },
    }.items()
}


def run(site: Site, users: int) -> dict[str, Any]:
    """Times, what was listed and what was not, and how the run after it ended."""
    engine = site.fresh("undo")
    load(engine, users)
    legacy = {name: rows(engine, _HASHES[name])[0] for name in LEGACY}
    with workers(site, 2) as running:
        migrated = finish(site.producer("enqueue-all", "--wait", "--json"))
        undone = finish(site.producer("rollback", "--wait", "--yes", "--json"))
        clean = _state(engine, legacy)
        again = finish(site.producer("enqueue-all", "--wait", "--json"))
        wanted = _edit(engine)
        killed = _under_kills(site, running)
        listed = killed["conflicts"]
        overwritten = {what: count - listed.get(what, 0) for what, count in wanted.items()}
        lost = _lost(engine)
        third = finish(site.producer("enqueue-all", "--wait", "--json"))
    engine.dispose()
    return {
        "users": users,
        "migration_seconds": round(migrated["wall"], 1),
        "rollback_seconds": round(undone["wall"], 1),
        "rollback_exit_status": undone["exit_status"],
        "not_as_before": clean,
        "again_exit_status": again["exit_status"],
        "edits": sum(wanted.values()),
        "kills": killed["kills"],
        "rollback_under_kills": [killed["exit_status"], killed["state"]],
        "conflicts": listed,
        "edits_not_listed": sum(overwritten.values()),
        "edits_lost": lost,
        "third_run": [third["exit_status"], third["state"], third["differences"]],
    }


def _state(engine: Engine, legacy: dict[str, Any]) -> list[str]:
    """The tables that are not as they were before the first run."""
    return [
        name
        for name, query in _HASHES.items()
        if (found := rows(engine, query)[0]) and found != legacy.get(name, (0, None))
    ]


def _edit(engine: Engine) -> dict[str, int]:
    wanted = {}
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE edited (what text, table_name text, row_key text)"))
        for what, count, table, change in EDITS:
            of_ours = "user_type IS NOT NULL" if table == "users" else "true"
            found = connection.execute(
                text(
                    f"WITH edit AS (UPDATE {table} SET {change} WHERE id IN (SELECT id FROM {table}"
                    f" WHERE {of_ours} AND id NOT IN (SELECT row_key FROM edited)"
                    f" ORDER BY md5(id || :what) LIMIT :count) RETURNING id)"
                    " INSERT INTO edited SELECT :what, :table, id FROM edit"
                ),
                {"what": what, "table": table, "count": count},
            )
            wanted[what] = found.rowcount
        wanted["tool_usage_logs hanging"] = connection.execute(
            text(_HANG), {"count": HANGING}
        ).rowcount
        wanted["users.credits_balance changed"] = connection.execute(
            text(_SPEND), {"count": SPENT}
        ).rowcount
    return wanted


def _lost(engine: Engine) -> int:
    """Edits that the rollback did not leave as they were."""
    queries = (
        "SELECT count(*) FROM edited e JOIN users u ON u.id = e.row_key"
        " WHERE e.what LIKE 'users.billing%' AND u.billing_tier IS DISTINCT FROM 'premium'"
        " OR e.what LIKE 'users.is_active%' AND u.is_active IS DISTINCT FROM false",
        "SELECT count(*) FROM edited e LEFT JOIN ai_tools t ON t.id = e.row_key"
        " WHERE e.table_name = 'ai_tools' AND t.description IS DISTINCT FROM 'mine'",
        "SELECT count(*) FROM edited e LEFT JOIN ai_suites t ON t.id = e.row_key"
        " WHERE e.table_name = 'ai_suites' AND t.description IS DISTINCT FROM 'mine'",
        f"SELECT {HANGING} - count(*) FROM tool_usage_logs WHERE action = 'chat'",
        "SELECT count(*) FROM credit_logs c JOIN users u ON u.id = c.user_id"
        " WHERE c.id LIKE 'spent %' AND u.credits_balance IS DISTINCT FROM c.balance_after",
        f"SELECT {SPENT} - count(*) FROM credit_logs WHERE id LIKE 'spent %'",
    )
    return sum(rows(engine, query)[0][0] for query in queries)


def _under_kills(site: Site, running: list[psutil.Popen]) -> dict[str, Any]:
    """The rollback, with a whole worker killed again and again while its batches run."""
    dice, kills = random.Random(1), 0
    producer = site.producer("rollback", "--wait", "--yes", "--json")
    due = time.monotonic() + 2

    def harm() -> None:
        nonlocal kills, due
        if kills < KILLS and time.monotonic() >= due:
            number = dice.randrange(len(running))
            kill(running[number])
            kills += 1
            running[number] = site.worker(number)
            due = time.monotonic() + 3

    ended = finish(producer, harm)
    return ended | {"kills": kills}
