"""What a live application, an operator or a bad schema does at the worst moment.

The engine runs in this process, batch by batch, so that a test can stop between any two.
"""

from __future__ import annotations

import functools
import threading

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, text

from models.errors import Incompatible, LeaseLost, Misconfigured, NotAllowed
from models.ledger import claims
from models.ledger.tables import batches, quarantine
from models.postgres import database as databases
from models.reports.run import RunReport
from models.settings import Settings
from producer.runs import acceptance, advance, control
from producer.schema import upgrade
from tests.driving import change, go_on, scalar, start, wait_for_lock, whole_run
from worker import batch

USERS = 60


def test_what_the_application_writes_while_a_batch_waits_for_the_row_stands(
    engine: Engine, settings: Settings
) -> None:
    run_id = start(engine, settings)
    go_on_to_users = []

    def hold(stage: str) -> None:
        if stage == "users" and not go_on_to_users:
            go_on_to_users.append(stage)
            connection = engine.connect()
            changed = connection.begin()
            connection.execute(
                text(
                    "UPDATE users SET is_active = false, user_type = 'admin',"
                    " credits_balance = coalesce(credits_balance, 0) + 10"
                    " WHERE id = (SELECT min(id) FROM users WHERE email LIKE '%@%')"
                )
            )
            connection.execute(
                text(
                    "INSERT INTO credit_logs (id, user_id, operation, amount, balance_after)"
                    " SELECT 'app', min(id), 'add', 10, 10 FROM users WHERE email LIKE '%@%'"
                )
            )
            threading.Thread(target=lambda: (wait_for_lock(engine), changed.commit())).start()

    go_on(engine, settings, run_id, before=hold)
    with engine.connect() as connection:
        user = connection.execute(
            text(
                "SELECT * FROM users WHERE id = (SELECT user_id FROM credit_logs WHERE id = 'app')"
            )
        ).one()
        logged = connection.scalar(
            text("SELECT sum(amount) FROM credit_logs WHERE user_id = :id"), {"id": user.id}
        )
    assert (user.is_active, user.user_type) == (False, "admin")
    assert user.credits_balance == logged


@pytest.mark.long
def test_a_tool_that_is_lost_is_made_again_and_never_of_a_tool(
    engine: Engine, settings: Settings, finished: RunReport
) -> None:
    assert finished.exit_status == 3
    change(
        engine, "DELETE FROM ai_tools WHERE id = (SELECT min(id) FROM ai_tools WHERE id LIKE 'p-%')"
    )
    made = scalar(engine, "SELECT count(*) FROM ai_tools WHERE id LIKE 'p-%'")
    assert whole_run(engine, settings).exit_status == 3
    assert scalar(engine, "SELECT count(*) FROM ai_tools WHERE id LIKE 'p-%'") == made + 1
    assert scalar(engine, "SELECT count(*) FROM ai_tools WHERE name LIKE 'p-%'") == 0


def test_a_step_without_rows_of_its_own_fails_instead_of_being_quarantine(
    engine: Engine, settings: Settings
) -> None:
    upgrade.upgrade(engine, settings)
    change(engine, "ALTER TABLE organizations ADD CHECK (name <> 'Default Organization')")
    failed = whole_run(engine, settings)
    assert (failed.state, failed.exit_status) == ("failed", 1)
    assert failed.error and "organization" in failed.error.message
    change(engine, "ALTER TABLE organizations DROP CONSTRAINT organizations_name_check")
    assert failed.run_id
    control.retry(engine, settings, failed.run_id)
    assert go_on(engine, settings, failed.run_id).exit_status == 3


def test_a_table_that_refuses_every_row_fails_the_batch_and_quarantines_nobody(
    engine: Engine, settings: Settings
) -> None:
    upgrade.upgrade(engine, settings)
    change(engine, "ALTER TABLE ai_suites ADD CHECK (name = 'impossible')")
    failed = whole_run(engine, settings)
    assert (failed.state, failed.exit_status) == ("failed", 1)
    assert failed.error and "The database refuses every user of the batch" in failed.error.message
    refused = "SELECT count(*) FROM migration.quarantine WHERE reason <> 'owner_missing'"
    assert scalar(engine, refused) == 0


@pytest.mark.parametrize(
    ("table", "column"),
    [("ai_tools", "description"), ("ai_tools", "version"), ("tool_assignments", "expires_at")],
)
def test_an_adopted_column_that_takes_no_null_is_refused_by_name(
    engine: Engine, settings: Settings, table: str, column: str
) -> None:
    upgrade.upgrade(engine, settings)
    change(engine, f"ALTER TABLE {table} ALTER {column} SET NOT NULL")
    with pytest.raises(Incompatible, match=f"{table}.{column}"):
        upgrade.upgrade(engine, settings)


def test_a_retry_takes_the_owner_before_its_project_in_whatever_order_they_come(
    engine: Engine, settings: Settings
) -> None:
    # A user with a project, quarantined with it.
    change(
        engine,
        "UPDATE users SET email = repeat(' ', 9) WHERE id ="
        " (SELECT max(p.user_id) FROM projects p JOIN users u ON u.id = p.user_id)",
    )
    first = whole_run(engine, settings)
    assert first.exit_status == 3 and first.run_id
    change(
        engine,
        "UPDATE users SET email = id || '@fixed.example'"
        " WHERE id IN (SELECT legacy_key FROM migration.quarantine)",
    )
    control.retry(engine, settings, first.run_id)
    go_on(engine, settings, first.run_id, backwards=True)
    left = scalar(
        engine,
        "SELECT count(*) FROM migration.quarantine"
        " WHERE state = 'open' AND reason = 'owner_quarantined'",
    )
    assert left == 0


def test_a_user_deleted_during_the_run_does_not_stop_its_end(
    engine: Engine, settings: Settings
) -> None:
    gone: list[str] = []

    def delete(stage: str) -> None:
        if stage == "switch" and not gone:
            gone.append(scalar(engine, "SELECT min(user_id) FROM ai_suites"))
            for table, column in (
                ("gpt_subscriptions", "user_id"),
                ("projects", "user_id"),
                ("users", "id"),
            ):
                change(engine, f"DELETE FROM {table} WHERE {column} = '{gone[0]}'")

    ended = whole_run(engine, settings, before=delete)
    assert ended.exit_status == 3, ended.error
    for table in ("ai_suites", "tool_assignments", "tool_usage_logs", "credit_logs"):
        assert scalar(engine, f"SELECT count(*) FROM {table} WHERE user_id = '{gone[0]}'") == 0
    assert scalar(engine, "SELECT count(*) FROM pg_constraint WHERE NOT convalidated") == 0


def test_ordinary_life_between_two_runs_is_no_difference(
    engine: Engine, settings: Settings, finished: RunReport
) -> None:
    assert finished.exit_status == 3
    change(
        engine,
        "UPDATE users SET billing_tier = 'premium', user_type = 'admin', is_active = false"
        " WHERE id = (SELECT min(user_id) FROM ai_suites)",
        "UPDATE users SET organization_id = NULL WHERE id = (SELECT max(user_id) FROM ai_suites)",
        "UPDATE users SET credits_balance = credits_balance - 5"
        " WHERE id = (SELECT min(user_id) FROM ai_suites)",
        "INSERT INTO credit_logs (id, user_id, operation, amount, balance_after)"
        " SELECT 'spent', min(user_id), 'deduct', 5, 95 FROM ai_suites",
    )
    second = whole_run(engine, settings)
    assert (second.differences, second.exit_status) == ({}, 3)


def test_a_locked_row_hands_the_batch_back_instead_of_failing_the_run(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = start(engine, settings)
    advance.advance(engine, settings, run_id)
    users = None
    while users is None:
        first = scalar(engine, "SELECT min(id) FROM migration.batches WHERE state = 'pending'")
        assert batch.run(engine, settings, run_id, first, "test") == {"outcome": "done"}
        advance.advance(engine, settings, run_id)
        users = scalar(engine, "SELECT min(id) FROM migration.batches WHERE stage = 'users'")
    impatient = functools.partial(databases.transaction, lock_timeout_ms=100)
    with engine.begin() as application, monkeypatch.context() as patch:
        application.execute(text("UPDATE users SET full_name = full_name"))
        patch.setattr(batch, "transaction", impatient)
        patch.setattr(batch, "MAX_RETRIES", 1)
        batch.run(engine, settings, run_id, users, "test")
    with engine.connect() as connection:
        row = connection.execute(sa.select(batches).where(batches.c.id == users)).one()
    assert (row.state, row.published_at, row.attempt) == ("pending", None, 1)
    assert "55P03" in row.error
    assert go_on(engine, settings, run_id).exit_status == 3


def test_a_retry_never_lowers_an_attempt_so_the_fence_holds(
    engine: Engine, settings: Settings
) -> None:
    upgrade.upgrade(engine, settings)
    change(engine, "ALTER TABLE ai_suites ADD CHECK (name = 'impossible')")
    failed = whole_run(engine, settings)
    assert failed.run_id
    with engine.connect() as connection:
        row = connection.execute(sa.select(batches).where(batches.c.state == "failed")).one()
    zombie = claims.Claim(failed.run_id, row.id, "users", "users", row.attempt, None)  # type: ignore[arg-type]
    control.retry(engine, settings, failed.run_id)
    early = scalar(
        engine,
        "SELECT id FROM migration.batches WHERE stage = 'organization' AND state = 'pending'",
    )
    batch.run(engine, settings, failed.run_id, early, "test")
    advance.advance(engine, settings, failed.run_id)
    with databases.transaction(engine) as connection:
        assert claims.claim(connection, failed.run_id, row.id, "new")
    with pytest.raises(LeaseLost), databases.transaction(engine) as connection:
        claims.complete(connection, zombie, {})


def test_a_bare_key_that_stands_for_several_rows_is_not_accepted(
    engine: Engine, settings: Settings, finished: RunReport
) -> None:
    with engine.begin() as connection:
        row = connection.execute(sa.select(quarantine).limit(1)).one()
        twin = dict(row._mapping) | {"entity": "user" if row.entity != "user" else "project"}
        connection.execute(sa.insert(quarantine).values(twin))
    with pytest.raises(Misconfigured, match="several rows"):
        acceptance.accept(engine, settings, finished.run_id, [row.legacy_key])
    assert scalar(engine, "SELECT count(*) FROM migration.quarantine WHERE state='accepted'") == 0


def test_accepting_a_user_accepts_what_hangs_on_it(engine: Engine, settings: Settings) -> None:
    change(
        engine,
        "UPDATE users SET email = repeat(' ', 9) WHERE id ="
        " (SELECT max(p.user_id) FROM projects p JOIN gpt_subscriptions s USING (user_id)"
        " JOIN users u ON u.id = user_id)",
    )
    ended = whole_run(engine, settings)
    with engine.connect() as connection:
        users = list(
            connection.scalars(
                sa.select(quarantine.c.legacy_key).where(quarantine.c.entity == "user")
            )
        )
    assert acceptance.accept(engine, settings, ended.run_id, users) > len(users)
    left = scalar(
        engine,
        "SELECT count(*) FROM migration.quarantine"
        " WHERE state = 'open' AND reason = 'owner_quarantined'",
    )
    assert left == 0


def test_a_cancelled_run_is_not_resumed_beside_an_open_one(
    engine: Engine, settings: Settings
) -> None:
    first = start(engine, settings)
    control.cancel(engine, first)
    second, is_new = advance.open_run(engine, settings)
    assert is_new
    with pytest.raises(NotAllowed, match=second):
        control.resume(engine, settings, first)


def test_a_worker_set_to_other_tables_does_not_touch_the_run(
    engine: Engine, settings: Settings
) -> None:
    run_id = start(engine, settings)
    change(engine, "CREATE TABLE others (LIKE users INCLUDING ALL)")
    advance.advance(engine, settings, run_id)
    batch_id = scalar(engine, "SELECT min(id) FROM migration.batches")
    other = settings.model_copy(update={"users_table": "others"})
    assert batch.run(engine, other, run_id, batch_id, "test") == {"outcome": "failed"}
    assert "others" in scalar(engine, "SELECT error FROM migration.batches")


def test_a_run_of_another_migrations_stages_is_not_moved(
    engine: Engine, settings: Settings
) -> None:
    run_id = start(engine, settings)
    # The first in order, so that a batch of a later stage would show.
    change(engine, "UPDATE migration.stages SET name = 'another' WHERE name = 'organization'")
    with pytest.raises(Misconfigured, match="another, organization"):
        advance.advance(engine, settings, run_id)
    assert scalar(engine, "SELECT count(*) FROM migration.batches") == 0


def test_verification_and_reconciliation_open_together_and_the_finish_after_both(
    engine: Engine, settings: Settings
) -> None:
    opened = (
        "SELECT string_agg(name, ' ' ORDER BY name) FROM migration.stages"
        " WHERE started_at IS NOT NULL AND state <> 'done'"
    )
    seen: dict[str, str] = {}
    whole_run(engine, settings, before=lambda stage: seen.setdefault(stage, scalar(engine, opened)))
    assert seen["switch"] == "switch"
    assert seen["verification"] == seen["reconciliation"] == "reconciliation verification"
    assert seen["finish"] == "finish"


@pytest.mark.usefixtures("bare")
def test_a_default_with_a_colon_and_a_percent_sign_is_read_as_it_is(
    engine: Engine, settings: Settings
) -> None:
    change(engine, "ALTER TABLE users ADD organization_id varchar DEFAULT 'org:100%'")
    assert whole_run(engine, settings).exit_status == 3
    assert (
        scalar(
            engine,
            "SELECT count(*) FROM users WHERE organization_id = 'org:100%' AND email LIKE '%@%'",
        )
        == 0
    )
