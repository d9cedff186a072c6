"""Each damage of the guide, planted a hundred times, is repaired exactly, and only once."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from sqlalchemy import Engine, text

from models.errors import Misconfigured, NotAllowed
from models.reports.run import RunReport
from models.settings import Settings
from producer import repair
from producer.reports import status
from producer.runs import rollback
from tests import oracle
from tests.driving import change, go_on, start, whole_run

USERS = 300
PLANTED = 100
# Made anew by a repair, as by the migration: when is no matter of what is right.
MOMENTS = {"created_at", "updated_at", "assigned_at", "started_at", "completed_at"}
# One more for each user with a suite, so that a second run has something to make.
LATE_SUBSCRIPTIONS = (
    "INSERT INTO gpt_subscriptions (id, user_id, gpt_id, status)"
    " SELECT 'late ' || user_id, user_id, 'later', 'active' FROM ai_suites"
)


def shot(engine: Engine) -> dict[str, list[dict[str, Any]]]:
    with engine.connect() as connection:
        tables = asdict(oracle.snapshot(connection, oracle.Names()))["tables"]
    return {
        name: sorted(({k: v for k, v in row.items() if k not in MOMENTS} for row in rows), key=str)
        for name, rows in tables.items()
    }


def fix(engine: Engine, settings: Settings, what: str, **options: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"key": None, "dry_run": False, "force": False}
    return repair.run(engine, settings, what, **given | options)


def some(engine: Engine, query: str) -> list[str]:
    with engine.connect() as connection:
        return list(connection.scalars(text(f"{query} LIMIT {PLANTED}")))


def listed(keys: list[str]) -> str:
    return ", ".join(f"'{key}'" for key in keys)


def plant_missing_data(engine: Engine) -> None:
    users = some(engine, "SELECT user_id FROM ai_suites ORDER BY md5(user_id)")
    change(
        engine,
        *(
            f"ALTER TABLE users ALTER {column} DROP NOT NULL"
            for column in ("user_type", "billing_tier")
        ),
        f"UPDATE users SET user_type = NULL WHERE id IN ({listed(users[:60])})",
        f"UPDATE users SET billing_tier = NULL WHERE id IN ({listed(users[40:])})",
    )


def plant_tools(engine: Engine) -> None:
    kind = "SELECT id FROM ai_tools WHERE id LIKE '{}-%' ORDER BY md5(id)"
    theirs = some(engine, kind.format("t"))
    projects = some(engine, kind.format("p"))[:30]
    change(
        engine,
        # With it go its assignment and its log, by foreign key.
        f"DELETE FROM ai_tools WHERE id IN ({listed(theirs[:50] + projects[:15])})",
        f"DELETE FROM tool_assignments WHERE tool_id IN ({listed(theirs[50:75] + projects[15:])})",
        f"DELETE FROM tool_usage_logs WHERE tool_id IN ({listed(theirs[75:])})",
    )


def plant_credits(engine: Engine) -> None:
    users = some(engine, "SELECT user_id FROM ai_suites ORDER BY md5(user_id)")
    change(
        engine,
        f"UPDATE users SET credits_balance = credits_balance + 0.01 WHERE id IN ({listed(users)})",
    )


PLANTS = {"missing-data": plant_missing_data, "tools": plant_tools, "credits": plant_credits}
CHANGES = {"missing-data": 120, "tools": 65 * 3 + 25 + 15 + 25, "credits": PLANTED}


@pytest.mark.parametrize("what", PLANTS)
def test_planted_damage_is_repaired_exactly_and_a_second_repair_finds_nothing(
    engine: Engine, settings: Settings, finished: RunReport, what: str
) -> None:
    before = shot(engine)
    PLANTS[what](engine)
    damaged = shot(engine)
    rehearsed = fix(engine, settings, what, dry_run=True)
    assert shot(engine) == damaged != before
    found = fix(engine, settings, what)
    after = shot(engine)
    gone = [str(row) for name in before for row in before[name] if row not in after[name]]
    assert gone == []
    assert after == before
    assert found["changed"] == rehearsed["changed"] == CHANGES[what]
    assert sorted(map(str, found["changes"])) == sorted(map(str, rehearsed["changes"]))
    assert fix(engine, settings, what)["changed"] == 0
    noted = [e for e in status.actions(engine) if e["action"] == f"repair {what}"]
    assert len(noted) == (PLANTED if what == "credits" else 1)


@pytest.mark.long
def test_a_repair_stays_with_the_run_that_migrated_the_user(
    engine: Engine, settings: Settings, finished: RunReport
) -> None:
    change(engine, LATE_SUBSCRIPTIONS)
    between = shot(engine)
    second = whole_run(engine, settings)
    assert second.rows["ai_tools"] > 0
    change(engine, "DELETE FROM ai_tools WHERE name <> 'later'")
    PLANTS["missing-data"](engine)
    for what in PLANTS:
        assert (fix(engine, settings, what)["changed"] > 0) is (what != "credits")
    for run, left in ((second, between), (finished, None)):
        started = rollback.start(engine, settings, run.run_id, force=False)
        found = go_on(engine, settings, started)
        assert (found.state, found.conflicts) == ("rolled_back", {})
        if left:
            assert shot(engine) == left
    after = shot(engine)
    assert after["ai_tools"] == after["tool_assignments"] == after["tool_usage_logs"] == []
    assert {row["user_type"] for row in after["users"]} <= {None, "student"}


def test_one_user_is_repaired_alone(
    engine: Engine, settings: Settings, finished: RunReport
) -> None:
    plant_credits(engine)
    wrong = fix(engine, settings, "credits", dry_run=True)["changes"]
    found = fix(engine, settings, "credits", key=wrong[0]["key"])
    assert found["changes"] == wrong[:1]
    assert fix(engine, settings, "credits", dry_run=True)["changed"] == PLANTED - 1
    (entry,) = (e for e in status.actions(engine) if e["action"] == "repair credits")
    assert entry["before"]["credits_balance"] == wrong[0]["before"]
    assert entry["after"] == {"user": wrong[0]["key"], "credits_balance": wrong[0]["after"]}


def test_a_charge_without_a_log_row_is_left_alone_unless_forced(
    engine: Engine, settings: Settings, finished: RunReport
) -> None:
    (user,) = some(engine, "SELECT user_id FROM ai_suites ORDER BY user_id")[:1]
    change(
        engine,
        "INSERT INTO tool_usage_logs (id, user_id, tool_id, action, credits_used)"
        f" SELECT 'chat', '{user}', tool_id, 'chat', 3 FROM tool_assignments"
        f" WHERE user_id = '{user}' LIMIT 1",
        f"UPDATE users SET credits_balance = credits_balance - 3 WHERE id = '{user}'",
    )
    before = shot(engine)
    found = fix(engine, settings, "credits")
    assert (found["changed"], [row["key"] for row in found["left_alone"]]) == (0, [user])
    assert shot(engine) == before
    forced = fix(engine, settings, "credits", force=True)
    assert (forced["changed"], forced["left_alone"]) == (1, [])


def test_a_repair_is_refused_while_a_run_is_open_and_for_a_user_that_is_not_there(
    engine: Engine, settings: Settings, finished: RunReport
) -> None:
    with pytest.raises(Misconfigured, match="There is no user nobody"):
        fix(engine, settings, "tools", key="nobody")
    (blank,) = some(engine, "SELECT min(id) FROM users WHERE btrim(email) = ''")
    assert "is quarantined: email_blank" in fix(engine, settings, "tools", key=blank)["note"]
    (fine,) = some(engine, "SELECT min(user_id) FROM ai_suites")
    assert fix(engine, settings, "tools", key=fine)["note"] == ""
    change(
        engine,
        "INSERT INTO users (id, email, hashed_password, full_name)"
        " VALUES ('new', 'n@new.example', '-', 'N')",
    )
    assert "is not migrated yet" in fix(engine, settings, "tools", key="new")["note"]
    start(engine, settings)
    with pytest.raises(NotAllowed, match="would be in its way"):
        fix(engine, settings, "tools")
