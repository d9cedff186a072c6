"""The application goes on writing while a run goes on: the target is as if it had been still.

The engine runs in this process, so that a write can fall between any two batches.
"""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from models import database as databases
from models.settings import DEFAULT_GRANTS, Settings, parse_grants
from producer import control, report
from tests import oracle, variants
from tests.application import Application
from tests.driving import change, go_on, scalar, start, whole_run
from tests.variants import Variant

USERS, BATCH_SIZE = 120, 20

NAMES = oracle.Names()
GRANTS = parse_grants(DEFAULT_GRANTS)


def snapshot(engine: Engine, names: oracle.Names = NAMES) -> oracle.Snapshot:
    with engine.connect() as connection:
        return oracle.snapshot(connection, names)


def wrong_rows(engine: Engine, before: oracle.Snapshot) -> list[str]:
    """What differs from a fresh migration of the legacy rows as they stand now."""
    with engine.connect() as connection:
        return oracle.compare_now(connection, before, GRANTS)


def triggers(engine: Engine) -> int:
    return int(scalar(engine, "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'migration%'"))


def live_on(engine: Engine, settings: Settings, variant: Variant, seed: int) -> Application:
    """Migrate while an application writes at every moment, and once more after its last write."""
    before = snapshot(engine, variant.names)
    application = Application(engine, seed=seed, names=variant.names)

    def write(stage: str) -> None:
        if stage == "finish":
            application.spare()
        for _ in range(4 if stage != "finish" else 1):
            application.write()

    run_id = start(engine, settings)
    ended = go_on(engine, settings, run_id, before=write)
    assert application.refused == []
    assert ended.state.startswith("completed"), (ended.error, ended.differences)
    assert triggers(engine) == 0
    # What was written after the last lock belongs to the next run.
    again = whole_run(engine, settings)
    assert (again.state, again.differences) == (ended.state, {})
    assert wrong_rows(engine, before) == []
    return application


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_written_at_whatever_moment_the_end_is_that_of_a_fresh_migration(
    engine: Engine, settings: Settings, seed: int
) -> None:
    assert not live_on(engine, settings, variants.PLAIN, seed).blocked


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("variant", variants.VARIANTS[1:], ids=str)
def test_so_it_is_in_any_shape_of_the_legacy_database(
    database: str, settings: Settings, variant: Variant, seed: int
) -> None:
    names = variant.names
    tables = {"users_table": names.users, "subscriptions_table": names.subscriptions}
    settings = settings.model_copy(update={**tables, "projects_table": names.projects})
    engine = databases.create(database)
    try:
        with engine.begin() as connection:
            variant.build(connection, 120)
        live_on(engine, settings, variant, seed)
    finally:
        engine.dispose()


def test_writes_before_the_last_lock_need_no_second_run(engine: Engine, settings: Settings) -> None:
    before = snapshot(engine)
    application = Application(engine, seed=11)

    def write(stage: str) -> None:
        if stage != "finish":
            for _ in range(6):
                application.write()

    ended = go_on(engine, settings, start(engine, settings), before=write)
    assert ended.exit_status == 3, (ended.error, ended.differences)
    assert wrong_rows(engine, before) == []
    users = scalar(engine, "SELECT count(*) FROM users")
    assert ended.users.total == users
    assert ended.users.migrated == scalar(engine, "SELECT count(DISTINCT user_id) FROM credit_logs")
    for name in ("ai_suites", "ai_tools", "tool_assignments", "tool_usage_logs"):
        assert getattr(ended.rows, name) == scalar(engine, f"SELECT count(*) FROM {name}")
    granted = scalar(engine, "SELECT sum(amount) FROM credit_logs")
    assert ended.credits_granted == granted


def test_what_is_written_after_the_end_comes_with_the_next_run(
    engine: Engine, settings: Settings
) -> None:
    before = snapshot(engine)
    assert whole_run(engine, settings).exit_status == 3
    application = Application(engine, seed=5)
    application.spare()
    for _ in range(300):
        application.write()
    again = whole_run(engine, settings)
    assert (again.exit_status, again.differences) == (3, {})
    assert wrong_rows(engine, before) == []


def test_what_the_new_application_changed_stays_and_is_no_difference(
    engine: Engine, settings: Settings
) -> None:
    assert whole_run(engine, settings).exit_status == 3
    tool = "(SELECT min(id) FROM ai_tools WHERE id LIKE 't-%')"
    used = "(SELECT max(id) FROM ai_tools WHERE id LIKE 't-%')"
    change(
        engine,
        "UPDATE ai_tools SET name = 'mine', configuration = '{\"mine\": 1}',"
        f" updated_at = now() + interval '1 minute' WHERE id = {tool}",
        "INSERT INTO tool_usage_logs (id, user_id, tool_id, action)"
        f" SELECT 'used', user_id, tool_id, 'chat' FROM tool_assignments WHERE tool_id = {used}",
        f"DELETE FROM gpt_subscriptions WHERE 't-' || id IN ({tool}, {used})",
        "UPDATE projects SET active_gpt_id = NULL"
        " WHERE id = (SELECT min(id) FROM projects WHERE active_gpt_id LIKE 'p-%')",
    )
    tools = scalar(engine, "SELECT count(*) FROM ai_tools")
    again = whole_run(engine, settings)
    assert (again.exit_status, again.differences) == (3, {})
    assert scalar(engine, "SELECT count(*) FROM ai_tools") == tools
    assert scalar(engine, f"SELECT name FROM ai_tools WHERE id = {tool}") == "mine"


def test_a_trigger_never_makes_the_applications_write_fail(
    engine: Engine, settings: Settings
) -> None:
    def write(stage: str) -> None:
        if stage == "switch":
            change(engine, "ALTER TABLE migration.changes RENAME TO elsewhere")
            change(engine, "UPDATE users SET email = 'a' || email WHERE id = 'nobody'",
                   "UPDATE users SET email = 'a' || email"
                   " WHERE id = (SELECT min(user_id) FROM ai_suites)")  # fmt: skip
            change(engine, "ALTER TABLE migration.elsewhere RENAME TO changes")

    ended = go_on(engine, settings, start(engine, settings), before=write)
    # The change was not captured: the verification says so, and a retry takes it up.
    assert ended.exit_status == 4 and ended.run_id
    assert set(ended.differences) == {"user wrong_value ai_suites.name"}
    control.retry(engine, settings, ended.run_id)
    assert go_on(engine, settings, ended.run_id).exit_status == 3


def test_an_application_without_any_right_on_the_ledger_is_captured_too(
    engine: Engine, settings: Settings
) -> None:
    role = "a_" + engine.url.database.replace("-", "_")  # type: ignore[union-attr]
    change(engine, f"CREATE ROLE {role}", f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    try:

        def write(stage: str) -> None:
            if stage == "verification":
                with engine.begin() as connection:
                    connection.execute(text(f"SET LOCAL ROLE {role}"))
                    connection.execute(text("UPDATE users SET email = id || '@new.example'"))

        ended = go_on(engine, settings, start(engine, settings), before=write)
        assert ended.exit_status == 3, (ended.error, ended.differences)
        assert scalar(engine, "SELECT count(*) FROM ai_suites WHERE name LIKE '%@new.example%'")
    finally:
        change(engine, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_a_failed_run_goes_on_capturing_so_that_a_retry_can_end_it(
    engine: Engine, settings: Settings
) -> None:
    before = snapshot(engine)
    planted: list[str] = []

    def plant(stage: str) -> None:
        if stage == "verification" and not planted:
            planted.append(scalar(engine, "SELECT min(id) FROM ai_tools"))
            change(engine, f"UPDATE ai_tools SET name = 'wrong' WHERE id = '{planted[0]}'")

    failed = go_on(engine, settings, start(engine, settings), before=plant)
    assert failed.exit_status == 4 and failed.run_id
    assert triggers(engine) == 6
    application = Application(engine, seed=3)
    for _ in range(100):
        application.write()
    control.retry(engine, settings, failed.run_id)
    ended = go_on(engine, settings, failed.run_id)
    assert ended.exit_status == 3, (ended.error, ended.differences)
    assert wrong_rows(engine, before) == []
    assert triggers(engine) == 0


def test_the_last_lock_yields_to_a_long_transaction_and_comes_back(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worker import settle

    tries: list[int] = []
    holder = engine.connect()

    def lock(context: object) -> None:
        tries.append(1)
        if len(tries) == 3:
            holder.rollback()
        real(context)  # type: ignore[arg-type]

    real = settle.lock
    monkeypatch.setattr(settle, "lock", lock)

    def write(stage: str) -> None:
        if stage == "finish" and not tries:
            holder.execute(text("UPDATE projects SET name = name"))

    run_id = start(engine, settings)
    try:
        ended = go_on(engine, settings, run_id, before=write)
    finally:
        holder.close()
    assert ended.exit_status == 3 and len(tries) == 3
    locked = scalar(engine, "SELECT (counts ->> 'locked_ms')::int FROM migration.batches"
                    " WHERE step = 'settle'")  # fmt: skip
    assert locked < 2000
    assert report.read(engine, run_id).state == "completed_with_quarantine"
