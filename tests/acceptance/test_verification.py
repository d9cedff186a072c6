"""The verification is verified: planted faults are found, each by its kind, and none invented."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from decimal import Decimal

import pytest
from sqlalchemy import text

from tests import variants
from tests.acceptance.conftest import Product

SUITE = "(SELECT id FROM ai_suites ORDER BY id OFFSET {n} LIMIT 1)"
OWNER = f"(SELECT user_id FROM ai_suites WHERE id = {SUITE})"
TOOL = (
    "(SELECT DISTINCT ON (suite_id) id FROM ai_tools WHERE id LIKE 't-%' AND version IS NOT NULL"
    " ORDER BY suite_id, id OFFSET {n} LIMIT 1)"
)
PROJECT = "(SELECT id FROM projects WHERE active_gpt_id LIKE 'p-%' ORDER BY id OFFSET {n} LIMIT 1)"
PROJECT_TOOL = f"(SELECT active_gpt_id FROM projects WHERE id = {PROJECT})"
TOOL_COLUMNS = (
    "name, description, tool_type, version, configuration, pricing_tier, credits_cost, is_active,"
    " requires_approval, created_at, updated_at, suite_id"
)

# (what is done to the row number {n}, all that the verification must say about it)
FAULTS = [
    ("UPDATE ai_suites SET id = 'moved' WHERE id = (SELECT id FROM ai_suites s WHERE NOT EXISTS"
     " (SELECT FROM ai_tools t WHERE t.suite_id = s.id) ORDER BY id DESC LIMIT 1)",
     {"user missing ai_suites": 1}),
    (f"DELETE FROM ai_tools WHERE id = {PROJECT_TOOL}", {"project missing ai_tools": 1}),
    (f"DELETE FROM tool_assignments WHERE tool_id = {TOOL}",
     {"subscription missing tool_assignments": 1}),
    (f"DELETE FROM tool_usage_logs WHERE tool_id = {TOOL}",
     {"subscription missing tool_usage_logs": 1}),
    (f"UPDATE ai_tools SET suite_id = (SELECT max(id) FROM ai_suites) WHERE id = {TOOL}",
     {"subscription wrong_owner ai_tools": 1, "subscription extra ai_tools": 1}),
    (f"UPDATE tool_usage_logs SET user_id = (SELECT max(user_id) FROM ai_suites)"
     f" WHERE tool_id = {TOOL}", {"subscription wrong_owner tool_usage_logs": 1,
     "subscription extra tool_usage_logs": 1}),
    (f"INSERT INTO ai_tools (id, {TOOL_COLUMNS}) SELECT 'double', {TOOL_COLUMNS} FROM ai_tools"
     f" WHERE id = {TOOL}", {"subscription extra ai_tools.duplicate": 1}),
    (f"INSERT INTO ai_tools (id, {TOOL_COLUMNS}) SELECT 't-nobody', {TOOL_COLUMNS} FROM ai_tools"
     f" WHERE id = {PROJECT_TOOL}",
     {"subscription extra ai_tools": 1, "project extra ai_tools.duplicate": 1}),
    (f"INSERT INTO ai_suites (id, user_id, name, configuration, created_at) SELECT 'double',"
     f" user_id, name, configuration, now() + interval '1 hour' FROM ai_suites"
     f" WHERE id = {SUITE}", {"user extra ai_suites.duplicate": 1}),
    (f"INSERT INTO tool_usage_logs (id, user_id, tool_id, action) SELECT 'double', user_id,"
     f" tool_id, action FROM tool_usage_logs WHERE tool_id = {TOOL}",
     {"subscription extra tool_usage_logs": 1}),
    # Null for a value, a value for null, truncated text, an altered document, a time that moved.
    (f"UPDATE ai_tools SET version = NULL WHERE id = {TOOL}",
     {"subscription wrong_value ai_tools.version": 1}),
    (f"UPDATE ai_tools SET version = '' WHERE id = {PROJECT_TOOL}",
     {"project wrong_value ai_tools.version": 1}),
    (f"UPDATE ai_suites SET name = left(name, 9) WHERE id = {SUITE}",
     {"user wrong_value ai_suites.name": 1}),
    (f"UPDATE ai_tools SET name = name || ' ' WHERE id = {TOOL}",
     {"subscription wrong_value ai_tools.name": 1}),
    (f"UPDATE ai_tools SET configuration = configuration || '{{{{\"x\": 1}}}}' WHERE id = {TOOL}",
     {"subscription wrong_value ai_tools.configuration": 1}),
    (f"UPDATE ai_tools SET is_active = NOT is_active WHERE id = {TOOL}",
     {"subscription wrong_value ai_tools.is_active": 1}),
    (f"UPDATE tool_assignments SET expires_at = now() WHERE tool_id = {TOOL}",
     {"subscription wrong_value tool_assignments.expires_at": 1}),
    (f"UPDATE tool_assignments SET permissions = '{{{{}}}}' WHERE tool_id = {TOOL}",
     {"subscription wrong_value tool_assignments.permissions": 1}),
    (f"UPDATE users SET user_type = CASE user_type WHEN 'admin' THEN 'student'::user_type"
     f" ELSE 'admin' END WHERE id = {OWNER}", {"user wrong_value users.user_type": 1}),
    (f"UPDATE users SET billing_tier = NULL WHERE id = {OWNER}",
     {"user wrong_value users.billing_tier": 1}),
    (f"UPDATE users SET organization_id = NULL WHERE id = {OWNER}",
     {"user wrong_value users.organization_id": 1}),
    (f"UPDATE projects SET is_template = NULL WHERE id = {PROJECT}",
     {"project wrong_value projects.is_template": 1}),
    # The GPT of before instead of the tool: what a write of the old application would leave.
    (f"UPDATE projects SET active_gpt_id = 'old_gpt' WHERE id = {PROJECT}",
     {"project wrong_value projects.active_gpt_id": 1}),
]  # fmt: skip
CREDIT_FAULTS = [
    # +1 here and -1 there: the sums over all users agree.
    (f"UPDATE users SET credits_balance = credits_balance + 1 WHERE id = {OWNER}",
     {"user balance users.credits_balance": 1}),
    (f"UPDATE users SET credits_balance = credits_balance - 1 WHERE id = {OWNER}",
     {"user balance users.credits_balance": 1}),
    (f"WITH more AS (UPDATE credit_logs SET amount = amount + 1 WHERE user_id = {OWNER}"
     " RETURNING user_id) UPDATE users u SET credits_balance = credits_balance + 1"
     " FROM more WHERE more.user_id = u.id",
     {"user wrong_value credit_logs.amount": 1, "user wrong_value credit_logs.balance_after": 1}),
    (f"INSERT INTO credit_logs SELECT 'double', user_id, operation, 0, balance_after, reason,"
     f" run_id, created_at FROM credit_logs WHERE user_id = {OWNER}",
     {"user extra credit_logs.grant": 1, "user wrong_value credit_logs.amount": 1,
      "user wrong_value credit_logs.balance_after": 1}),
    (f"UPDATE credit_logs SET reason = 'gift' WHERE user_id = {OWNER}",
     {"user missing credit_logs.grant": 1}),
]  # fmt: skip
CHANGED = (
    "ai_suites",
    "ai_tools",
    "tool_assignments",
    "tool_usage_logs",
    "credit_logs",
    "users",
    "projects",
)


@pytest.fixture(scope="module")
def migrated(module_product: Product) -> Iterator[Product]:
    """A migrated database, and workers that go on running."""
    with module_product.engine.begin() as connection:
        variants.PLAIN.build(connection, 200)
    with module_product.worker():
        ended = module_product.run("enqueue-all", "--wait", "--json")
        assert ended.status == 3, ended.err
        yield module_product


@pytest.fixture
def keeping(migrated: Product) -> Iterator[Product]:
    """The same, with every table put back as it was after the test."""
    with migrated.engine.begin() as connection:
        for table in CHANGED:
            connection.exec_driver_sql(f"CREATE TABLE kept_{table} AS TABLE {table}")
    yield migrated
    with migrated.engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        for table in CHANGED:
            connection.exec_driver_sql(f"DELETE FROM {table}")
            connection.exec_driver_sql(f"INSERT INTO {table} TABLE kept_{table}")
            connection.exec_driver_sql(f"DROP TABLE kept_{table}")


def plant(product: Product, faults: list[tuple[str, dict[str, int]]]) -> dict[str, int]:
    """Do each to a row of its own, five apart; returns all that must be found."""
    wanted: Counter[str] = Counter()
    with product.engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        for number, (statement, differences) in enumerate(faults):
            planted = statement.format(n=5 * number).replace("%", "%%")
            assert connection.exec_driver_sql(planted).rowcount == 1, planted
            wanted.update(differences)
    return dict(wanted)


def test_exactly_the_planted_faults_are_found(keeping: Product) -> None:
    wanted = plant(keeping, FAULTS)
    found = keeping.run("verify", "--wait", "--json")
    assert found.json["differences"] == wanted
    assert (found.status, found.json["state"]) == (4, "failed")
    wanted |= plant(keeping, CREDIT_FAULTS)
    # The user whose type was changed above was granted what the former type is granted.
    wanted["user wrong_value credit_logs.amount"] += 1
    keeping.run("reconcile", "--wait", "--json")
    status = keeping.run("status", "--json")
    assert (status.status, status.json["differences"]) == (4, wanted)
    assert "missing" in status.err and "producer differences" in status.err
    listed = keeping.run("differences", "--json").json
    assert len(listed["rows"]) == sum(wanted.values())
    # Values only where somebody asks, and only on stdout.
    assert not any({"target_key", "expected", "found"} & row.keys() for row in listed["rows"])
    valued = keeping.run("differences", "--values", "--json")
    assert "'s Suite" not in valued.err
    values = {
        (row["kind"], row["table"], row["detail"]): (row["expected"], row["found"])
        for row in valued.json["rows"]
    }
    assert len(valued.json["rows"]) == len(listed["rows"])
    assert all(row["target_key"] for row in valued.json["rows"]), valued.json["rows"]
    assert values["wrong_value", "users", "billing_tier"] == ("free", None)
    wanted_name, name = values["wrong_value", "ai_suites", "name"]
    assert wanted_name.endswith("'s Suite") and wanted_name[:9] == name
    balance, changed = map(Decimal, values["balance", "users", "credits_balance"])
    assert abs(balance - changed) == 1
    assert f'expected "{wanted_name}"' in keeping.run("differences", "--values").out
    header, *lines = keeping.run("differences", "--values", "--csv").out.splitlines()
    assert header.endswith("target_key,expected,found") and len(lines) == len(listed["rows"])
    assert "retry" in listed["fixes"]["verification"]
    assert "repair credits" in listed["fixes"]["reconciliation"]
    shown = keeping.run("differences").out
    assert wanted_name not in shown
    assert all(row["key"] in shown for row in listed["rows"])
    assert all(command in shown for command in listed["fixes"].values())
    checked = status.json["verification"]["differences"]
    checked += status.json["reconciliation"]["discrepancies"]
    with keeping.engine.connect() as connection:
        rows = connection.execute(text("SELECT * FROM migration.differences")).all()
    assert len(rows) == checked == sum(wanted.values())
    # Row by row, and not a word of what the application stores.
    assert all(row.legacy_key and row.kind for row in rows)
    assert "@" not in str(rows)


def test_a_clean_database_verifies_clean_and_ends_as_before(migrated: Product) -> None:
    migrated.run("verify", "--wait", "--json")
    ended = migrated.run("reconcile", "--wait", "--json")
    assert (ended.status, ended.json["differences"]) == (3, {})
