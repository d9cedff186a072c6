"""What a live application may do to a run in its last moments, and at other bad ones.

The engine runs in this process, so that a write can fall between any two statements.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection, Engine, event

from models.dashboard.projects.replay import ChangedProjects
from models.dashboard.users.apply import Users
from models.engine.live.cutover import HELD_MS
from models.engine.step import Context, Scope, Step
from models.ledger.tables import runs
from models.postgres import database as databases
from models.settings import Settings
from producer.runs import control
from tests import variants
from tests.driving import change, go_on, scalar, wait_for_lock, whole_run
from tests.integration.test_live_writes import snapshot, triggers, wrong_rows
from tests.short import short
from worker import cutover

USERS, BATCH_SIZE = 60, 20


def once(stage: str, *statements: str) -> Callable[[Engine], Callable[[str], None]]:
    """Runs the statements before the first batch of a stage."""

    def bind(engine: Engine) -> Callable[[str], None]:
        done: list[str] = []

        def before(found: str) -> None:
            if found == stage and not done:
                done.append(found)
                change(engine, *statements)

        return before

    return bind


A_USER = "(SELECT min(user_id) FROM ai_suites)"


def at_the_last_lock(monkeypatch: pytest.MonkeyPatch, action: Callable[[Any, int], None]) -> None:
    """Calls `action` with the context right before each lock, and the lock's number."""
    numbers = itertools.count(1)
    real = cutover.lock

    def lock(context: Any) -> None:
        action(context, next(numbers))
        real(context)

    monkeypatch.setattr(cutover, "lock", lock)


def limits_under_lock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The time limit, in milliseconds, of each statement that is sent under the last lock."""
    limits: list[int] = []
    real = cutover.transaction

    @contextmanager
    def transaction(engine: Engine) -> Iterator[Any]:
        locked: list[bool] = []

        def read(connection: Any, _: Any, statement: str, *__: Any) -> None:
            if "SHARE ROW EXCLUSIVE" in statement:
                locked.append(True)
            elif locked and "statement_timeout" not in statement:
                with connection.connection.cursor() as other:
                    other.execute(
                        "SELECT setting::integer FROM pg_settings WHERE name = 'statement_timeout'"
                    )
                    limits.append(other.fetchone()[0])

        with real(engine) as connection:
            event.listen(connection, "after_cursor_execute", read)
            yield connection

    monkeypatch.setattr(cutover, "transaction", transaction)
    return limits


@pytest.mark.long
def test_a_burst_before_the_last_lock_is_taken_up_without_it(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much becomes visible at the last moment, writers wait no longer than the limit."""
    owner = scalar(engine, "SELECT min(id) FROM users WHERE email LIKE '%@%'")
    burst = (
        "INSERT INTO projects (id, user_id, name, status, active_gpt_id)"
        f" SELECT 'burst' || n, '{owner}', '', '', 'math' FROM generate_series(1, 3000) n"
    )
    limits = limits_under_lock(monkeypatch)
    at_the_last_lock(monkeypatch, lambda _, n: change(engine, burst) if n == 1 else None)
    ended = whole_run(engine, settings)
    assert ended.exit_status == 3, (ended.error, ended.differences)
    assert scalar(engine, "SELECT count(*) FROM ai_tools WHERE id LIKE 'p-burst%'") == 3000
    assert limits and max(limits) <= HELD_MS


def test_a_row_that_is_refused_under_the_last_lock_is_quarantined_without_it(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = (
        "INSERT INTO users (id, email, hashed_password, full_name)"
        " VALUES ('live1', 'bad@live.example', '', '')"
    )
    at_the_last_lock(monkeypatch, lambda _, n: change(engine, bad) if n == 1 else None)
    add_check = "ALTER TABLE ai_suites ADD CHECK (name NOT LIKE 'bad@%')"
    ended = whole_run(engine, settings, before=once("finish", add_check)(engine))
    assert ended.exit_status == 3, (ended.error, ended.differences)
    reason = "SELECT reason FROM migration.quarantine WHERE legacy_key = 'live1'"
    assert scalar(engine, reason) == "rejected"


def test_a_run_does_not_end_when_somebody_took_the_triggers_away(
    engine: Engine, settings: Settings
) -> None:
    before = snapshot(engine)
    planted = once(
        "finish",
        "DROP TRIGGER migration_capture_values ON users",
        f"UPDATE users SET email = 'unseen@live.example' WHERE id = {A_USER}",
    )
    failed = whole_run(engine, settings, before=planted(engine))
    assert failed.exit_status == 1 and failed.run_id
    assert failed.error and "trigger" in failed.error.message
    # Now the verification sees the difference, and the next retry fixes it.
    control.retry(engine, settings, failed.run_id)
    assert go_on(engine, settings, failed.run_id).exit_status == 4
    control.retry(engine, settings, failed.run_id)
    assert go_on(engine, settings, failed.run_id).exit_status == 3
    assert wrong_rows(engine, before) == []
    assert triggers(engine) == 0


@pytest.mark.parametrize("stage", short(["projects", "verification", "finish"], "finish"))
def test_a_user_who_is_deleted_and_comes_back_is_a_new_user(
    engine: Engine, settings: Settings, stage: str
) -> None:
    before = snapshot(engine)
    key = scalar(
        engine,
        "SELECT min(s.user_id) FROM gpt_subscriptions s JOIN users u ON u.id = s.user_id"
        " JOIN projects p ON p.user_id = u.id WHERE u.email LIKE '%@%'",
    )
    again = once(
        stage,
        f"DELETE FROM users WHERE id = '{key}'",
        "INSERT INTO users (id, email, hashed_password, full_name, role)"
        f" VALUES ('{key}', 'again@live.example', '', '', 'teacher')",
    )
    ended = whole_run(engine, settings, before=again(engine))
    assert ended.exit_status == 3, (ended.error, ended.differences)
    assert wrong_rows(engine, before) == []


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("stage", ["projects", "finish"])
def test_an_owner_that_the_users_key_cannot_hold_is_no_owner(
    engine: Engine, settings: Settings, stage: str
) -> None:
    with engine.begin() as connection:
        for table in ("projects", "gpt_subscriptions", "users"):
            connection.exec_driver_sql(f"DROP TABLE {table}")
        variants.INTEGER.build(connection, 60)
        for table in ("dashboard_gpt_subscriptions", "dashboard_projects"):
            connection.exec_driver_sql(f"ALTER TABLE {table} ALTER user_id TYPE bigint")
    names = variants.INTEGER.names
    update = {"users_table": names.users, "subscriptions_table": names.subscriptions}
    settings = settings.model_copy(update={**update, "projects_table": names.projects})
    far = once(
        stage,
        *(
            f"UPDATE {table} SET user_id = 9999999999 WHERE id = (SELECT max(id) FROM {table})"
            for table in (names.subscriptions, names.projects)
        ),
    )
    ended = whole_run(engine, settings, before=far(engine))
    assert ended.exit_status == 3, (ended.error, ended.differences)
    assert scalar(engine, "SELECT count(*) FROM migration.quarantine WHERE reason = 'owner_missing'"
                  " AND state = 'open'")  # fmt: skip


def take_up(connection: Connection, settings: Settings, step: Step, key: str) -> None:
    """Apply a step to one key of the only run, as its replay does."""
    run = connection.execute(sa.select(runs)).one()
    context, scope = Context.read(connection, settings, run), Scope(keys=(key,), again=True)
    step.prepare(context, scope)
    step.apply(context, scope)


@pytest.mark.parametrize("first", [0, 1])
def test_a_subscription_that_moves_between_two_batches_keeps_its_tool(
    engine: Engine, settings: Settings, first: int
) -> None:
    """Two workers at once: the old owner's batch takes the tool away, the new owner's moves it."""
    ended = whole_run(engine, settings)
    assert ended.exit_status == 3
    found = scalar(engine, "SELECT min(id) FROM gpt_subscriptions WHERE 't-' || id IN"
                   " (SELECT id FROM ai_tools)")  # fmt: skip
    old = scalar(engine, f"SELECT user_id FROM gpt_subscriptions WHERE id = '{found}'")
    new = scalar(engine, f"SELECT max(user_id) FROM ai_suites WHERE user_id <> '{old}'")
    change(engine, f"UPDATE gpt_subscriptions SET user_id = '{new}' WHERE id = '{found}'")
    owners = [old, new][:: 1 if first == 0 else -1]

    def other() -> None:
        with databases.transaction(engine) as connection:
            take_up(connection, settings, Users(), owners[1])

    second = threading.Thread(target=other)
    with databases.transaction(engine) as connection:
        take_up(connection, settings, Users(), owners[0])
        second.start()
        wait_for_lock(engine)
    second.join()
    home = (
        "SELECT s.user_id FROM ai_tools t JOIN ai_suites s ON s.id = t.suite_id"
        f" WHERE t.id = 't-{found}'"
    )
    assert scalar(engine, home) == new
    for table in ("tool_assignments", "tool_usage_logs"):
        assert scalar(engine, f"SELECT user_id FROM {table} WHERE tool_id = 't-{found}'") == new


def test_a_replay_waits_for_who_deletes_a_project_before_it_locks_the_user(
    engine: Engine, settings: Settings
) -> None:
    """Otherwise a session that deletes the user next would wait for it, and it for the session."""
    assert whole_run(engine, settings).exit_status == 3
    without = (
        "FROM projects p WHERE btrim(coalesce(active_gpt_id, '')) = ''"
        " AND user_id IN (SELECT user_id FROM ai_suites)"
    )
    key = scalar(engine, f"SELECT min(id) {without}")
    owner = scalar(engine, f"SELECT user_id FROM projects WHERE id = '{key}'")
    change(engine, f"UPDATE projects SET active_gpt_id = 'new_gpt' WHERE id = '{key}'")

    def replay() -> None:
        with databases.transaction(engine) as connection:
            take_up(connection, settings, ChangedProjects(), key)

    second = threading.Thread(target=replay)
    with engine.begin() as application:
        application.exec_driver_sql(f"DELETE FROM projects WHERE id = '{key}'")
        second.start()
        wait_for_lock(engine)
        application.exec_driver_sql(f"SELECT FROM users WHERE id = '{owner}' FOR UPDATE NOWAIT")
    second.join()
    assert not scalar(engine, f"SELECT count(*) FROM ai_tools WHERE id = 'p-{key}'")


@pytest.mark.parametrize(
    ("what", "stage"),
    short(
        itertools.product(
            ("user", "subscription", "project"), ("projects", "verification", "finish")
        ),
        ("user", "projects"),
        ("subscription", "verification"),
        ("project", "finish"),
    ),
)
def test_a_migrated_row_that_the_database_refuses_later_is_quarantined_with_what_it_had(
    engine: Engine, settings: Settings, stage: str, what: str
) -> None:
    checks = [
        "ALTER TABLE ai_suites ADD CHECK (name NOT LIKE 'bad%')",
        "ALTER TABLE ai_tools ADD CHECK (name NOT LIKE 'bad%')",
    ]
    statement = {
        "user": f"UPDATE users SET email = 'bad@live.example' WHERE id = {A_USER}",
        "subscription": "UPDATE gpt_subscriptions SET gpt_id = 'bad'"
        " WHERE id = (SELECT min(substr(id, 3)) FROM ai_tools WHERE id LIKE 't-%')",
        "project": "UPDATE projects SET active_gpt_id = 'bad'"
        " WHERE id = (SELECT min(substr(id, 3)) FROM ai_tools WHERE id LIKE 'p-%')",
    }[what]
    late = once(stage if what != "project" or stage != "projects" else "switch", *checks, statement)
    ended = whole_run(engine, settings, before=late(engine))
    assert ended.exit_status == 3, (ended.error, ended.differences)
    refused = f"SELECT count(*) FROM migration.quarantine WHERE entity = '{what}'"
    assert scalar(engine, f"{refused} AND reason = 'rejected'") == 1
