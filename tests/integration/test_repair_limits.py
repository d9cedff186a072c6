"""Repairs change no user who is not migrated, and no value that was there before the migration."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from models.errors import NotAllowed
from models.ledger.selection import Choice
from models.ledger.tables import RECONCILIATION, VERIFICATION
from models.reports.run import RunReport
from models.settings import Settings
from producer.runs import advance, control, rollback
from producer.schema import upgrade
from tests.driving import change, go_on, scalar, whole_run
from tests.integration.test_repair import LATE_SUBSCRIPTIONS, PLANTS, fix, shot

USERS = 60
MIGRATABLE = """
  SELECT u.id FROM users u WHERE btrim(coalesce(u.email, '')) <> '' AND EXISTS (
    SELECT FROM gpt_subscriptions s WHERE s.user_id = u.id AND btrim(s.gpt_id) <> '')
  ORDER BY u.id OFFSET {} LIMIT 1"""


def keys(engine: Engine) -> tuple[str, str]:
    """Two users who get a suite and tools."""
    one, other = (str(scalar(engine, MIGRATABLE.format(place))) for place in (0, 1))
    return one, other


def give(engine: Engine, user: str, *, balance: int) -> None:
    """What the new application may give to a user: a suite and a balance, without a log."""
    change(
        engine,
        f"UPDATE users SET credits_balance = {balance} WHERE id = '{user}'",
        "INSERT INTO ai_suites (id, user_id, name, created_at, updated_at)"
        f" VALUES ('own', '{user}', 'Mine', now(), now()) ON CONFLICT DO NOTHING",
    )


def canary(engine: Engine, settings: Settings, user: str) -> RunReport:
    upgrade.upgrade(engine, settings)
    run_id, _ = advance.open_run(engine, settings, Choice(only=(user,)))
    return go_on(engine, settings, run_id)


def roll_back(engine: Engine, settings: Settings, run: RunReport) -> RunReport:
    started = rollback.start(engine, settings, run.run_id, force=False)
    return go_on(engine, settings, started)


def assert_nothing_is_repaired(engine: Engine, settings: Settings) -> None:
    before = shot(engine)
    for what in PLANTS:
        found = fix(engine, settings, what)
        assert (found["changed"], found["left_alone"]) == (0, [])
    assert shot(engine) == before


def test_a_user_whom_a_canary_did_not_select_is_left_alone(
    engine: Engine, settings: Settings
) -> None:
    selected, other = keys(engine)
    give(engine, other, balance=250)
    assert canary(engine, settings, selected).exit_status == 0
    assert_nothing_is_repaired(engine, settings)
    assert "is not migrated yet" in fix(engine, settings, "credits", key=other)["note"]


def test_a_user_whose_run_is_rolled_back_is_left_alone_even_if_the_suite_was_kept(
    engine: Engine, settings: Settings, finished: RunReport
) -> None:
    selected, other = keys(engine)
    change(engine, f"UPDATE ai_suites SET description = 'Mine' WHERE user_id = '{other}'")
    assert roll_back(engine, settings, finished).conflicts
    change(engine, f"UPDATE users SET credits_balance = 250 WHERE id = '{other}'")
    assert canary(engine, settings, selected).exit_status == 0
    assert_nothing_is_repaired(engine, settings)


def test_a_user_whom_the_new_application_added_is_left_alone(
    engine: Engine, settings: Settings, finished: RunReport
) -> None:
    change(
        engine,
        "INSERT INTO users (id, email, hashed_password, full_name)"
        " VALUES ('new', 'n@new.example', '-', 'N')",
    )
    give(engine, "new", balance=50)
    assert_nothing_is_repaired(engine, settings)


def test_a_user_whose_grant_a_rollback_kept_is_repaired_after_the_next_run(
    engine: Engine, settings: Settings
) -> None:
    _, user = keys(engine)
    give(engine, user, balance=250)
    change(
        engine,
        "INSERT INTO organizations (id, name, type, subscription_tier)"
        " VALUES ('own', 'Own', 'education', 'free')",
        "UPDATE users SET user_type = 'teacher', billing_tier = 'free', is_active = true,"
        f" organization_id = 'own' WHERE id = '{user}'",
    )
    first = whole_run(engine, settings)
    change(engine, f"UPDATE users SET credits_balance = 7 WHERE id = '{user}'")
    assert roll_back(engine, settings, first).conflicts
    # Nothing of this user is left for it to do, and so nothing in the ledger is its own.
    assert whole_run(engine, settings).differences == {"user balance users.credits_balance": 1}
    assert [row["after"] for row in fix(engine, settings, "credits")["changes"]] == ["750.00"]


def test_a_lost_grant_is_repaired_also_where_its_before_image_was_dropped(
    engine: Engine, settings: Settings, finished: RunReport
) -> None:
    user, _ = keys(engine)
    before = shot(engine)
    run_id, _ = rollback.forget(engine, finished.run_id)
    change(engine, f"DELETE FROM credit_logs WHERE user_id = '{user}'")
    # A retry without it would take what was granted for the user's own, and grant once more.
    assert [row["key"] for row in fix(engine, settings, "credits")["changes"]] == [user]
    control.check_again(engine, settings, run_id, RECONCILIATION)
    assert go_on(engine, settings, run_id).state == "failed"
    control.retry(engine, settings, run_id)
    assert go_on(engine, settings, run_id).exit_status == finished.exit_status
    assert shot(engine) == before


def lose_values(engine: Engine, user: str) -> None:
    columns = ("user_type", "billing_tier", "is_active")
    change(
        engine,
        *(f"ALTER TABLE users ALTER {column} DROP NOT NULL" for column in columns),
        f"UPDATE users SET {', '.join(f'{column} = NULL' for column in columns)}"
        f" WHERE id = '{user}'",
    )


def repaired_values(engine: Engine, settings: Settings) -> list[str]:
    return [row["after"] for row in fix(engine, settings, "missing-data")["changes"]]


def test_lost_values_that_were_there_before_the_run_come_back_as_they_were(
    engine: Engine, settings: Settings
) -> None:
    user, _ = keys(engine)
    give(engine, user, balance=0)
    change(
        engine,
        "UPDATE users SET user_type = 'teacher', billing_tier = 'premium', is_active = false"
        f" WHERE id = '{user}'",
    )
    run = whole_run(engine, settings)
    before = shot(engine)
    lose_values(engine, user)
    assert repaired_values(engine, settings) == ["teacher", "premium", "false"]
    assert shot(engine) == before
    control.check_again(engine, settings, str(run.run_id), VERIFICATION)
    assert go_on(engine, settings, str(run.run_id)).differences == {}


def test_of_two_runs_the_newer_one_says_which_values_were_there(
    engine: Engine, settings: Settings
) -> None:
    user, _ = keys(engine)
    give(engine, user, balance=0)
    change(engine, f"UPDATE users SET role = 'admin', billing_tier = 'basic' WHERE id = '{user}'")
    whole_run(engine, settings)
    lose_values(engine, user)
    change(engine, f"UPDATE users SET billing_tier = 'premium' WHERE id = '{user}'")
    assert whole_run(engine, settings).differences == {}
    lose_values(engine, user)
    assert repaired_values(engine, settings) == ["admin", "premium", "true"]


def test_a_repair_is_refused_where_all_runs_are_rolled_back(
    engine: Engine, settings: Settings, finished: RunReport
) -> None:
    assert roll_back(engine, settings, finished).state == "rolled_back"
    before = shot(engine)
    for what in PLANTS:
        with pytest.raises(NotAllowed, match="is rolled back, and no other run is left"):
            fix(engine, settings, what)
    assert shot(engine) == before


def test_what_is_repaired_after_a_rollback_belongs_to_a_run_that_is_not_rolled_back(
    engine: Engine, settings: Settings, finished: RunReport
) -> None:
    change(engine, LATE_SUBSCRIPTIONS)
    roll_back(engine, settings, whole_run(engine, settings))
    user, _ = keys(engine)
    # The grant and the image that would say who migrated the user are lost.
    rollback.forget(engine, finished.run_id)
    change(engine, f"DELETE FROM credit_logs WHERE user_id = '{user}'")
    assert fix(engine, settings, "tools", key=user)["changed"] == 3
    made_by = f"SELECT DISTINCT session_id FROM tool_usage_logs WHERE user_id = '{user}'"
    assert scalar(engine, f"SELECT string_agg(m, ' ') FROM ({made_by}) AS m(m)") == finished.run_id


def test_a_repair_is_refused_while_an_older_run_is_open(
    engine: Engine, settings: Settings, finished: RunReport
) -> None:
    roll_back(engine, settings, whole_run(engine, settings))
    control.check_again(engine, settings, str(finished.run_id), VERIFICATION)
    with pytest.raises(NotAllowed, match=f"Run {finished.run_id} is running"):
        fix(engine, settings, "tools")
