"""Rows of the application that break a rule are warnings with a count and a query."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from models.dashboard.checks.integrity import INTEGRITY
from models.settings import Settings
from producer.checks import integrity
from tests.driving import change, start, whole_run

USERS = 60
_DROP_KEYS = """
DO $$ DECLARE k record; BEGIN
  FOR k IN SELECT conname, conrelid::regclass AS name FROM pg_constraint WHERE contype = 'f' LOOP
    EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', k.name, k.conname);
  END LOOP;
END $$
"""
_OPEN = "ALTER TABLE users " + ", ".join(
    f"ALTER {column} DROP NOT NULL" for column in ("user_type", "hashed_password", "full_name")
)
_TOOL = "INSERT INTO ai_tools (id, name, tool_type, suite_id, pricing_tier, credits_cost) SELECT"
# For each rule, what breaks it for the row of this key.
PLANTS = {
    "users without a type, a tier or a balance": (
        "n", "INSERT INTO users (id, email, user_type) VALUES ('n', 'n@example.org', NULL)",
    ),
    "users without a suite": (
        "s", "INSERT INTO users (id, email) VALUES ('s', 's@example.org')",
    ),
    "users with a negative balance": (
        "b", "INSERT INTO users (id, email, credits_balance) VALUES ('b', 'b@example.org', -1)",
    ),
    "users of a missing organization or department": (
        "o", "INSERT INTO users (id, email, department_id) VALUES ('o', 'o@example.org', 'gone')",
    ),
    "suites without a user": (
        "alone", "INSERT INTO ai_suites (id, user_id, name) VALUES ('alone', 'gone', 'x')",
    ),
    "tools without a tier, or without a cost of at least 0": (
        "cheap", f"{_TOOL} 'cheap', 'x', 'gpt', min(id), 'free', -1 FROM ai_suites",
    ),
    "tools without a suite": (
        "stray", f"{_TOOL} 'stray', 'x', 'gpt', 'gone', 'free', 0",
    ),
    "assignments without a user or a tool": (
        "gone gone", "INSERT INTO tool_assignments (tool_id, user_id) VALUES ('gone', 'gone')",
    ),
    "usage logs without a user or a tool": (
        "log", "INSERT INTO tool_usage_logs (id, user_id, tool_id, action)"
        " SELECT 'log', min(user_id), 'gone', 'chat' FROM ai_suites",
    ),
    "credit logs without a user": (
        "credit", "INSERT INTO credit_logs (id, user_id, operation, amount, balance_after)"
        " VALUES ('credit', 'gone', 'add', 1, 1)",
    ),
    "listings without a tool": (
        "list", "INSERT INTO marketplace_listings (id, tool_id, title)"
        " VALUES ('list', 'gone', 'x')",
    ),
}  # fmt: skip


@pytest.mark.usefixtures("bare")
def test_each_rule_finds_its_rows_and_a_query_lists_them(
    engine: Engine, settings: Settings
) -> None:
    assert [check.verdict for check in integrity.examine(engine, settings, seconds=60)] == [
        "unknown"
    ]
    whole_run(engine, settings)
    (sound,) = integrity.examine(engine, settings, seconds=60)
    assert (sound.name, sound.verdict) == ("data integrity", "ok")
    change(engine, _DROP_KEYS, _OPEN, *(statement for _, statement in PLANTS.values()))
    found = {check.name: check for check in integrity.examine(engine, settings, seconds=60)}
    assert found.keys() == PLANTS.keys() == INTEGRITY.keys()
    for name, (key, _) in PLANTS.items():
        assert found[name].verdict == "warning"
        with engine.connect() as connection:
            query = found[name].hint.removeprefix("List them: ")
            listed = connection.exec_driver_sql(query.replace("%", "%%")).scalars().all()
        assert key in listed
        assert found[name].found.startswith(f"{len(listed)}: ")
    (late,) = integrity.examine(engine, settings, seconds=0)
    assert (late.verdict, late.found.count(",")) == ("unknown", len(INTEGRITY) + 1)
    start(engine, settings)
    (busy,) = integrity.examine(engine, settings, seconds=60)
    assert (busy.verdict, busy.found.endswith("is preparing")) == ("unknown", True)
