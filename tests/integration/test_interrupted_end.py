"""A run that is stopped at its end, after the last lock: nothing written meanwhile is forgotten."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Engine

from models.reports.run import RunReport
from models.settings import Settings
from producer.runs import advance, control
from tests import oracle
from tests.driving import change, go_on, pending, scalar, start, whole_run
from tests.integration.test_live_writes import snapshot, triggers, wrong_rows
from tests.short import short
from worker import batch

Stop = Callable[[Engine, str], str]

USERS, BATCH_SIZE = 60, 20
WRITES = (
    "INSERT INTO users (id, email, hashed_password, full_name)"
    " VALUES ('between', 'between@school.example', 'x', 'n')",
    "UPDATE gpt_subscriptions SET gpt_id = 'gpt-between' WHERE id = (SELECT min(s.id)"
    " FROM gpt_subscriptions s JOIN ai_suites a ON a.user_id = s.user_id)",
    "DELETE FROM users WHERE id = (SELECT min(legacy_key) FROM migration.quarantine"
    " WHERE entity = 'user')",
)
AGED = "UPDATE migration.changes SET captured_at = captured_at - interval '1 hour'"


def work_until(engine: Engine, settings: Settings, run_id: str, step: str, nth: int = 1) -> None:
    """Do what comes before the nth batch of a step."""
    while True:
        advance.advance(engine, settings, run_id)
        with engine.connect() as connection:
            waiting = pending(connection, run_id)
        assert waiting, f"there is no batch {nth} of {step}"
        for row in waiting:
            nth -= row.step == step
            if not nth:
                return
            batch.run(engine, settings, run_id, row.id, "test")


def assert_all_is_migrated(engine: Engine, ended: RunReport, before: oracle.Snapshot) -> None:
    assert (ended.exit_status, ended.differences) == (3, {}), ended.error
    assert ended.entities["users"].total == scalar(engine, "SELECT count(*) FROM users")
    assert wrong_rows(engine, before) == []
    assert (triggers(engine), scalar(engine, "SELECT count(*) FROM migration.changes")) == (0, 0)
    of_gone = "SELECT count(*) FROM migration.quarantine q WHERE state = 'open' AND entity = 'user'"
    gone = f"{of_gone} AND NOT EXISTS (SELECT FROM users WHERE id = q.legacy_key)"
    assert scalar(engine, gone) == 0


@pytest.mark.parametrize(
    "step", short(["late_removed", "contract", "totals", "release"], "contract", "release")
)
def test_what_is_written_while_a_run_is_paused_after_the_last_lock_is_migrated(
    engine: Engine, settings: Settings, step: str
) -> None:
    before = snapshot(engine)
    run_id = start(engine, settings)
    work_until(engine, settings, run_id, step)
    control.pause(engine, run_id)
    change(engine, *WRITES, AGED)
    control.resume(engine, settings, run_id)
    assert_all_is_migrated(engine, go_on(engine, settings, run_id), before)


@pytest.mark.parametrize("stop", [control.cancel, control.pause], ids=["cancel", "pause"])
def test_what_is_written_while_some_triggers_are_gone_already_is_migrated(
    engine: Engine, settings: Settings, stop: Stop
) -> None:
    before = snapshot(engine)
    run_id = start(engine, settings)
    work_until(engine, settings, run_id, "release", nth=3)
    assert triggers(engine) > 0
    stop(engine, run_id)
    change(engine, *WRITES)
    control.resume(engine, settings, run_id)
    assert_all_is_migrated(engine, go_on(engine, settings, run_id), before)


@pytest.mark.parametrize("stop", [control.cancel, control.pause], ids=["cancel", "pause"])
def test_a_check_that_is_stopped_and_resumed_leaves_no_trigger(
    engine: Engine, settings: Settings, finished: RunReport, stop: Stop
) -> None:
    assert finished.run_id
    control.check_again(engine, settings, finished.run_id, "verification")
    stop(engine, finished.run_id)
    control.resume(engine, settings, finished.run_id)
    ended = go_on(engine, settings, finished.run_id)
    assert (ended.exit_status, ended.differences) == (3, {}), ended.error
    assert triggers(engine) == 0


def test_a_user_who_becomes_bad_after_not_null_is_set_is_quarantined(
    engine: Engine, settings: Settings
) -> None:
    """The type stays and the balance is 0: neither may be null any more."""
    change(engine, "UPDATE users SET email = id || '@school.example'")
    run_id = start(engine, settings)
    work_until(engine, settings, run_id, "totals")
    control.pause(engine, run_id)
    bad = "(SELECT min(user_id) FROM ai_suites)"
    balance = f"SELECT credits_balance FROM users WHERE id = {bad}"
    assert scalar(engine, balance) > 0
    change(engine, f"UPDATE users SET email = '' WHERE id = {bad}", AGED)
    control.resume(engine, settings, run_id)
    ended = go_on(engine, settings, run_id)
    assert (ended.exit_status, ended.differences) == (3, {}), ended.error
    assert ended.entities["users"].quarantined == 1
    assert scalar(engine, "SELECT credits_balance FROM users WHERE email = ''") == 0
    assert triggers(engine) == 0


@pytest.mark.parametrize("step", short(["accounting", "contract"], "contract"))
def test_a_cancelled_run_that_another_one_has_overtaken_judges_anew(
    engine: Engine, settings: Settings, step: str
) -> None:
    before = snapshot(engine)
    run_id = start(engine, settings)
    work_until(engine, settings, run_id, step)
    control.cancel(engine, run_id)
    assert whole_run(engine, settings).exit_status == 3
    change(engine, *WRITES)
    control.resume(engine, settings, run_id)
    assert_all_is_migrated(engine, go_on(engine, settings, run_id), before)
