"""The application goes on writing while a run goes on: the target is as if it had been still.

The engine runs in this process, so that a write can fall between any two batches.
"""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from models.ledger.tables import RECONCILIATION, VERIFICATION
from models.reports.run import RunReport
from models.settings import DEFAULT_GRANTS, Settings, parse_grants
from producer import repair
from producer.reports import differing, status
from producer.runs import control
from producer.schema import upgrade
from tests import oracle, variants
from tests.application import Application
from tests.driving import change, go_on, in_shape, scalar, start, whole_run
from tests.short import short
from tests.variants import Variant

USERS, BATCH_SIZE = 120, 30

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


def assert_counts_are_those_of_the_tables(engine: Engine, ended: RunReport) -> None:
    for name in ("ai_suites", "ai_tools", "tool_assignments", "tool_usage_logs"):
        assert ended.rows[name] == scalar(engine, f"SELECT count(*) FROM {name}")
    assert ended.amounts["credits_granted"] == scalar(engine, "SELECT sum(amount) FROM credit_logs")


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


@pytest.mark.parametrize("seed", short(range(4), 1))
def test_whatever_is_written_at_whatever_moment_the_end_is_that_of_a_fresh_migration(
    engine: Engine, settings: Settings, seed: int
) -> None:
    assert not live_on(engine, settings, variants.PLAIN, seed).blocked


@pytest.mark.long
@pytest.mark.parametrize("variant", variants.VARIANTS[1:], ids=str)
def test_so_it_is_in_any_shape_of_the_legacy_database(
    database: str, settings: Settings, variant: Variant
) -> None:
    with in_shape(database, settings, variant, 120) as (engine, shaped):
        live_on(engine, shaped, variant, seed=1)


@pytest.mark.long
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
    assert ended.entities["users"].total == users
    assert ended.entities["users"].migrated == scalar(
        engine, "SELECT count(DISTINCT user_id) FROM credit_logs"
    )
    assert_counts_are_those_of_the_tables(engine, ended)


@pytest.mark.long
def test_what_is_written_after_the_end_comes_with_the_next_run(
    engine: Engine, settings: Settings, before: oracle.Snapshot, finished: RunReport
) -> None:
    assert finished.exit_status == 3
    application = Application(engine, seed=5)
    application.spare()
    for _ in range(300):
        application.write()
    again = whole_run(engine, settings)
    assert (again.exit_status, again.differences) == (3, {})
    assert wrong_rows(engine, before) == []


def test_what_the_new_application_changed_stays_and_is_no_difference(
    engine: Engine, settings: Settings, finished: RunReport
) -> None:
    assert finished.exit_status == 3
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
    # The change was not captured: the verification says so, and a retry replays it.
    assert ended.exit_status == 4 and ended.run_id
    assert set(ended.differences) == {"user wrong_value ai_suites.name"}
    control.retry(engine, settings, ended.run_id)
    assert go_on(engine, settings, ended.run_id).exit_status == 3


@pytest.mark.usefixtures("bare")
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
    assert triggers(engine) == 9
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
    from worker import cutover

    tries: list[int] = []
    holder = engine.connect()

    def lock(context: object) -> None:
        tries.append(1)
        if len(tries) == 3:
            holder.rollback()
        real(context)  # type: ignore[arg-type]

    real = cutover.lock
    monkeypatch.setattr(cutover, "lock", lock)

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
    assert status.read(engine, run_id).state == "completed_with_quarantine"


def test_a_retry_of_a_complete_run_takes_up_what_was_written_since(
    engine: Engine, settings: Settings, before: oracle.Snapshot, finished: RunReport
) -> None:
    assert finished.exit_status == 3 and finished.run_id
    application = Application(engine, seed=7)
    application.spare()
    for _ in range(100):
        application.write()
    change(engine, "UPDATE users SET email = id || '@fixed.example' WHERE btrim(email) = ''")
    control.retry(engine, settings, finished.run_id)
    ended = go_on(engine, settings, finished.run_id)
    assert (ended.state.split("_")[0], ended.differences) == ("completed", {}), ended.error
    assert ended.verification.differences == 0
    assert wrong_rows(engine, before) == []


@pytest.mark.parametrize("is_verified", [False, True], ids=["retry", "verify and retry"])
def test_a_retry_of_a_complete_run_leaves_the_new_applications_changes_alone(
    engine: Engine, settings: Settings, finished: RunReport, is_verified: bool
) -> None:
    assert finished.exit_status == 3 and finished.run_id
    tool = "(SELECT min(id) FROM ai_tools WHERE id LIKE 't-%')"
    owner = f"(SELECT min(user_id) FROM tool_assignments WHERE tool_id = {tool})"
    change(
        engine,
        "UPDATE ai_tools SET name = 'mine', updated_at = now() + interval '1 minute'"
        f" WHERE id = {tool}",
        f"UPDATE users SET user_type = 'developer', credits_balance = 7 WHERE id = {owner}",
        "INSERT INTO credit_logs (id, user_id, operation, amount, balance_after)"
        f" SELECT 'used', id, 'deduct', (SELECT sum(amount) FROM credit_logs WHERE user_id = u.id)"
        f" - 7, 7 FROM users u WHERE id = {owner}",
        "UPDATE users SET email = id || '@fixed.example' WHERE btrim(email) = ''",
    )
    if is_verified:
        control.check_again(engine, settings, finished.run_id, "verification")
        assert go_on(engine, settings, finished.run_id).exit_status == 4
    control.retry(engine, settings, finished.run_id)
    ended = go_on(engine, settings, finished.run_id)
    assert (ended.exit_status, ended.differences) == (3, {})
    assert ended.entities["users"].quarantined < finished.entities["users"].quarantined
    assert scalar(engine, f"SELECT name FROM ai_tools WHERE id = {tool}") == "mine"
    assert scalar(engine, f"SELECT user_type FROM users WHERE id = {owner}") == "developer"
    assert scalar(engine, f"SELECT credits_balance FROM users WHERE id = {owner}") == 7


def test_a_retry_does_not_hide_what_it_cannot_fix(
    engine: Engine, settings: Settings, finished: RunReport
) -> None:
    assert finished.run_id
    change(
        engine,
        "UPDATE users SET credits_balance = credits_balance + 1"
        " WHERE id = (SELECT min(user_id) FROM credit_logs)",
    )
    control.retry(engine, settings, finished.run_id)
    ended = go_on(engine, settings, finished.run_id)
    assert ended.exit_status == 4
    assert ended.differences == {"user balance users.credits_balance": 1}
    assert (ended.verification.differences, ended.reconciliation.discrepancies) == (0, 1)
    (fix,) = differing.fixes(differing.read(engine, finished.run_id)).values()
    assert "repair credits" in fix
    # Nor does the other check.
    for stage in (VERIFICATION, RECONCILIATION):
        control.check_again(engine, settings, finished.run_id, stage)
        again = go_on(engine, settings, finished.run_id)
        assert (again.exit_status, again.reconciliation.discrepancies) == (4, 1)
    repair.run(engine, settings, "credits", key=None, dry_run=False, force=False)
    control.check_again(engine, settings, finished.run_id, RECONCILIATION)
    fixed = go_on(engine, settings, finished.run_id)
    assert (fixed.exit_status, fixed.differences, fixed.reconciliation.discrepancies) == (3, {}, 0)


@pytest.mark.long
def test_what_a_run_wrote_counts_through_all_its_retries(
    engine: Engine, settings: Settings
) -> None:
    application = Application(engine, seed=13)

    def write(stage: str) -> None:
        if stage != "finish":
            application.write()

    ended = go_on(engine, settings, start(engine, settings), before=write)
    assert ended.run_id
    for email in ("one", "two"):
        blank = "(SELECT min(id) FROM users WHERE btrim(email) = '')"
        change(engine, f"UPDATE users SET email = '{email}@example.org' WHERE id = {blank}")
        control.retry(engine, settings, ended.run_id)
        ended = go_on(engine, settings, ended.run_id)
        assert ended.exit_status == 3, (ended.error, ended.differences)
        assert_counts_are_those_of_the_tables(engine, ended)


def test_a_table_that_is_truncated_is_taken_up_too(engine: Engine, settings: Settings) -> None:
    before = snapshot(engine)
    done: list[str] = []

    def truncate(stage: str) -> None:
        if stage == "verification" and not done:
            done.append(stage)
            change(engine, "TRUNCATE gpt_subscriptions")

    ended = go_on(engine, settings, start(engine, settings), before=truncate)
    assert ended.exit_status in (0, 3), (ended.error, ended.differences)
    assert ended.entities["subscriptions"].total == 0
    assert wrong_rows(engine, before) == []


def test_a_second_change_is_taken_up_where_the_application_stamps_its_updates(
    engine: Engine, settings: Settings
) -> None:
    upgrade.upgrade(engine, settings)
    change(
        engine,
        "CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN NEW.updated_at = now() + interval ''1 second''; RETURN NEW; END'",
        *(
            f"CREATE TRIGGER stamp BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION stamp()"
            for table in ("ai_tools", "ai_suites")
        ),
    )
    before = snapshot(engine)
    seen: list[str] = []

    def write(stage: str) -> None:
        if stage in ("projects", "finish") and stage not in seen:
            seen.append(stage)
            change(
                engine,
                f"UPDATE gpt_subscriptions SET gpt_id = 'gpt-{stage}'"
                " WHERE id = (SELECT substr(min(id), 3) FROM ai_tools WHERE id LIKE 't-%')",
                f"UPDATE users SET email = '{stage}@example.org'"
                " WHERE id = (SELECT min(user_id) FROM ai_suites)",
            )

    ended = go_on(engine, settings, start(engine, settings), before=write)
    assert (ended.exit_status, ended.differences) == (3, {})
    assert wrong_rows(engine, before) == []


@pytest.mark.long
def test_a_cancelled_run_that_another_one_has_overtaken_watches_again(
    engine: Engine, settings: Settings
) -> None:
    before = snapshot(engine)
    first = start(engine, settings)
    cancelled: list[str] = []

    def cancel(stage: str) -> None:
        if stage == "projects" and not cancelled:
            cancelled.append(control.cancel(engine, first))

    assert go_on(engine, settings, first, before=cancel).state == "cancelled"
    assert whole_run(engine, settings).exit_status == 3 and triggers(engine) == 0
    control.resume(engine, settings, first)
    application = Application(engine, seed=17)
    application.spare()
    watched: list[int] = []

    def write(stage: str) -> None:
        if stage == "switch":
            watched.append(triggers(engine))
            application.write()

    ended = go_on(engine, settings, first, before=write)
    assert set(watched) == {9}
    assert (ended.exit_status, ended.differences) == (3, {})
    assert wrong_rows(engine, before) == []


@pytest.mark.parametrize("stage", short(["users", "verification", "finish"], "finish"))
def test_a_user_who_gets_another_key_is_granted_once(
    engine: Engine, settings: Settings, stage: str
) -> None:
    change(engine, "UPDATE users SET id = 'a' || id, email = 'x' || email"
           " WHERE id = (SELECT min(id) FROM users WHERE email LIKE '%@%')")  # fmt: skip
    before = snapshot(engine)
    migrated = "(SELECT min(user_id) FROM credit_logs WHERE reason = 'migration_grant')"
    done: list[str] = []

    def rename(now: str) -> None:
        if now == stage and not done and scalar(engine, f"SELECT {migrated} IS NOT NULL"):
            done.append(scalar(engine, f"SELECT {migrated}"))
            for old, new in ((done[0], "zz_once"), ("zz_once", "zz_twice")):
                change(
                    engine,
                    f"UPDATE users SET id = '{new}' WHERE id = '{old}'",
                    f"UPDATE gpt_subscriptions SET user_id = '{new}' WHERE user_id = '{old}'",
                    f"UPDATE projects SET user_id = '{new}' WHERE user_id = '{old}'",
                )

    ended = go_on(engine, settings, start(engine, settings), before=rename)
    assert done and scalar(engine, "SELECT count(*) FROM users WHERE id = 'zz_twice'") == 1
    assert (ended.exit_status, ended.differences) == (3, {})
    assert wrong_rows(engine, before) == []
    assert_counts_are_those_of_the_tables(engine, ended)
