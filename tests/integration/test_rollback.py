"""A run is undone to the row; what somebody changed since, or uses, is kept and listed."""

from __future__ import annotations

from dataclasses import asdict
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Engine, text

from models.errors import NotAllowed
from models.postgres import database as databases
from models.reports.run import RunReport
from models.settings import DEFAULT_GRANTS, Settings, parse_grants
from producer.reports import differing, status
from producer.runs import control, rollback
from producer.schema import upgrade
from tests import oracle, variants
from tests.application import Application
from tests.driving import change, go_on, scalar, start, whole_run
from tests.short import short

USERS = 150
BATCH_SIZE = 50
NAMES = oracle.Names()
GRANTS: dict[str, Decimal] = parse_grants(DEFAULT_GRANTS)


def undo(engine: Engine, settings: Settings, *, force: bool = False) -> RunReport:
    return go_on(engine, settings, rollback.start(engine, settings, None, force=force))


def shot(engine: Engine, names: oracle.Names = NAMES) -> dict[str, Any]:
    """Every row of every table that the migration reads or writes, and the users' defaults."""
    with engine.connect() as connection:
        return asdict(oracle.snapshot(connection, names))


def kept(engine: Engine) -> set[tuple[str, str, str, str]]:
    with engine.connect() as connection:
        found = connection.execute(
            text("SELECT kind, table_name, row_key, detail FROM migration.conflicts")
        )
        return {(row.kind, row.table_name, row.row_key, row.detail) for row in found}


@pytest.mark.parametrize("variant", short(variants.VARIANTS, variants.PLAIN), ids=str)
def test_a_run_is_undone_to_the_row_and_made_again(
    database: str, settings: Settings, variant: variants.Variant
) -> None:
    engine = databases.create(database)
    names = variant.names
    settings = settings.model_copy(
        update={
            "users_table": names.users,
            "subscriptions_table": names.subscriptions,
            "projects_table": names.projects,
        }
    )
    with engine.begin() as connection:
        variant.build(connection, USERS)
    upgrade.upgrade(engine, settings)
    with engine.connect() as connection:
        before = oracle.snapshot(connection, names)
    first = whole_run(engine, settings)
    assert first.rows["ai_suites"] > 0
    found = undo(engine, settings)
    assert (found.state, found.conflicts, found.exit_status) == ("rolled_back", {}, 0)
    assert set(found.rows.values()) == {0}
    assert found.amounts["credits_granted"] == 0
    assert shot(engine, names) == asdict(before)
    assert scalar(engine, "SELECT count(*) FROM migration.before_images") == 0
    again = whole_run(engine, settings)
    assert again.verification.differences == again.reconciliation.discrepancies == 0
    assert (again.state, again.rows) == (first.state, first.rows)
    with engine.connect() as connection:
        assert oracle.compare(connection, before, oracle.expected(before, GRANTS)) == []
    engine.dispose()


Listed = set[tuple[str, str, str, str]]


def edit(engine: Engine) -> tuple[Listed, set[str]]:
    """What an application does to what a run wrote: the conflicts, and the tools that stay."""

    def read(query: str) -> list[str]:
        with engine.connect() as connection:
            return list(connection.scalars(text(query)))

    mine = read("SELECT id FROM ai_tools WHERE id LIKE 't-%' ORDER BY id LIMIT 6")
    users = read(
        "SELECT u.id FROM users u JOIN ai_suites s ON s.user_id = u.id WHERE u.id > ("
        f"SELECT max(l.user_id) FROM tool_usage_logs l WHERE l.tool_id <= '{mine[-1]}'"
        " AND l.tool_id LIKE 't-%') ORDER BY u.id LIMIT 9"
    )
    projects = read("SELECT id FROM projects WHERE active_gpt_id LIKE 'p-%' ORDER BY id LIMIT 4")
    change(
        engine,
        # None of these touches updated_at, as an application need not.
        f"UPDATE ai_tools SET name = 'renamed' WHERE id = '{mine[0]}'",
        f"UPDATE tool_usage_logs SET status = 'seen' WHERE tool_id = '{mine[1]}'",
        f"UPDATE tool_assignments SET expires_at = now() WHERE tool_id = '{mine[2]}'",
        "INSERT INTO tool_usage_logs (id, user_id, tool_id, action)"
        f" VALUES ('theirs', '{users[0]}', '{mine[3]}', 'chat')",
        "INSERT INTO marketplace_listings (id, tool_id, title)"
        f" VALUES ('sold', '{mine[4]}', 'For sale')",
        f"INSERT INTO tool_assignments (tool_id, user_id) VALUES ('{mine[5]}', '{users[0]}')",
        "INSERT INTO departments (id, organization_id, name)"
        " VALUES ('math', 'default-organization', 'Mathematics')",
        f"UPDATE users SET user_type = 'developer' WHERE id = '{users[0]}'",
        f"UPDATE users SET billing_tier = 'premium' WHERE id = '{users[1]}'",
        f"UPDATE users SET is_active = false WHERE id = '{users[2]}'",
        f"UPDATE users SET department_id = 'math' WHERE id = '{users[3]}'",
        f"UPDATE users SET credits_balance = credits_balance - 1 WHERE id = '{users[4]}'",
        f"UPDATE credit_logs SET balance_after = 7 WHERE id = 'g-{users[5]}'",
        f"UPDATE ai_suites SET description = 'mine' WHERE user_id = '{users[6]}'",
        "INSERT INTO ai_tools (id, name, tool_type, pricing_tier, suite_id)"
        f" SELECT 'own tool', 'own', 'gpt', 'free', id FROM ai_suites WHERE user_id = '{users[7]}'",
        f"UPDATE projects SET active_gpt_id = 'other' WHERE id = '{projects[0]}'",
        f"UPDATE projects SET is_template = true WHERE id = '{projects[1]}'",
        f"UPDATE projects SET active_gpt_id = 'p-{projects[3]}' WHERE id = '{projects[2]}'",
        # Of no concern: columns that the run never wrote.
        f"UPDATE users SET full_name = 'New Name', last_login = now() WHERE id = '{users[8]}'",
    )
    columns = ("user_type", "billing_tier", "is_active", "department_id", "credits_balance")
    (owner,) = read(f"SELECT user_id FROM tool_usage_logs WHERE tool_id = '{mine[2]}'")
    wanted = {
        ("changed", "ai_tools", mine[0], ""),
        ("changed", "tool_usage_logs", f"u{mine[1][1:]}", ""),
        ("changed", "tool_assignments", f"{mine[2]} {owner}", ""),
        ("hanging", "tool_usage_logs", "theirs", ""),
        ("hanging", "marketplace_listings", "sold", ""),
        ("hanging", "tool_assignments", f"{mine[5]} {users[0]}", ""),
        *(("changed", "users", user, column) for user, column in zip(users, columns, strict=False)),
        ("changed", "users", users[5], "credits_balance"),
        ("changed", "ai_suites", f"s-{users[6]}", ""),
        ("hanging", "ai_tools", "own tool", ""),
        ("changed", "projects", projects[0], "active_gpt_id"),
        ("changed", "projects", projects[1], "is_template"),
        ("changed", "projects", projects[2], "active_gpt_id"),
        ("hanging", "projects", projects[2], "active_gpt_id"),
    }
    return wanted, {*mine, "own tool", f"p-{projects[3]}"}


def mine_seen(wanted: Listed) -> str:
    """The subscription whose usage log was changed."""
    (log,) = (
        key for kind, name, key, _ in wanted if (kind, name) == ("changed", "tool_usage_logs")
    )
    return log.removeprefix("u-")


@pytest.mark.long
def test_what_was_changed_since_is_kept_and_listed_and_a_new_run_builds_on_it(
    engine: Engine, settings: Settings, finished: RunReport
) -> None:
    wanted, stay = edit(engine)
    after = shot(engine)["tables"]
    found = undo(engine, settings)
    assert (found.state, found.exit_status) == ("rolled_back", 3)
    listed = kept(engine)
    assert wanted <= listed
    # The rest are created rows that what is kept needs.
    assert {each for each in listed - wanted if each[0] != "held"} == set()
    now = shot(engine)["tables"]
    assert {row["id"] for row in now["ai_tools"]} == stay
    for table, key in (("ai_tools", "id"), ("ai_suites", "id"), ("tool_usage_logs", "id")):
        left = [row for row in after[table] if row[key] in {row[key] for row in now[table]}]
        assert now[table] == left
    columns: dict[str, set[str]] = {}
    for kind, table, key, column in listed:
        if table == "users" and kind == "changed":
            columns.setdefault(key, set()).add(column)
    users = {row["id"]: row for row in after["users"]}
    for row in now["users"]:
        for column in ("user_type", "billing_tier", "is_active", "credits_balance"):
            if column in columns.get(row["id"], ()):
                assert row[column] == users[row["id"]][column]
    assert scalar(engine, "SELECT count(*) FROM credit_logs WHERE reason = 'migration_grant'") == 2
    # What is wrong with what was kept was wrong before the rollback.
    whole_run(engine, settings)
    found_now = {row["key"] for row in differing.first(engine, None)}
    money = {key for _, _, key, column in wanted if column == "credits_balance"}
    assert found_now - money == {mine_seen(wanted)}
    assert found_now & money == money


def test_force_undoes_also_what_was_changed_since(engine: Engine, settings: Settings) -> None:
    upgrade.upgrade(engine, settings)
    before = shot(engine)
    whole_run(engine, settings)
    edit(engine)
    run_id = undo(engine, settings).run_id
    with pytest.raises(NotAllowed, match="rolled back already"):
        rollback.start(engine, settings, run_id, force=False)
    found = undo(engine, settings, force=True)
    assert (found.state, found.conflicts, found.run_id) == ("rolled_back", {}, run_id)
    now = shot(engine)
    for row in (*before["tables"]["users"], *now["tables"]["users"]):
        row.pop("full_name"), row.pop("last_login")
    assert now["tables"]["ai_tools"] == []
    assert now == before


def test_a_run_that_was_cancelled_on_the_way_is_undone(engine: Engine, settings: Settings) -> None:
    upgrade.upgrade(engine, settings)
    before = shot(engine)
    run_id = start(engine, settings)
    seen: list[str] = []

    def stop(stage: str) -> None:
        seen.append(stage)
        if seen.count("projects") == 2:
            control.cancel(engine, run_id)

    assert go_on(engine, settings, run_id, before=stop).state == "cancelled"
    assert scalar(engine, "SELECT count(*) FROM ai_tools") > 0
    with pytest.raises(NotAllowed, match="only a run that is over") as refused:
        control.resume(engine, settings, run_id)
        rollback.start(engine, settings, run_id, force=False)
    assert "producer cancel" in refused.value.hint
    control.cancel(engine, run_id)
    assert undo(engine, settings).state == "rolled_back"
    assert shot(engine) == before
    with pytest.raises(NotAllowed, match="rollback has begun"):
        control.retry(engine, settings, run_id)


def test_the_newest_run_goes_first_and_takes_nothing_of_the_one_before(
    engine: Engine, settings: Settings, finished: RunReport
) -> None:
    change(
        engine,
        "INSERT INTO users (id, email, hashed_password, full_name, role)"
        " VALUES ('zz new', 'new@example.org', 'x', 'x', 'teacher')",
        "INSERT INTO gpt_subscriptions (id, user_id, gpt_id, status)"
        " SELECT 'zz ' || id, id, 'later', 'active' FROM users ORDER BY id LIMIT 3",
    )
    between = shot(engine)
    second = whole_run(engine, settings)
    assert second.rows["ai_suites"] == 1 and second.rows["ai_tools"] == 3
    with pytest.raises(NotAllowed, match=f"Run {second.run_id} wrote rows after") as refused:
        rollback.start(engine, settings, finished.run_id, force=False)
    assert str(second.run_id) in refused.value.hint
    found = undo(engine, settings)
    assert (found.run_id, found.state, found.conflicts) == (second.run_id, "rolled_back", {})
    assert found.entities["users"].migrated == finished.entities["users"].migrated
    assert shot(engine) == between
    assert undo(engine, settings).run_id == finished.run_id
    assert scalar(engine, "SELECT count(*) FROM ai_tools") == 0


@pytest.mark.long
def test_runs_that_wrote_nothing_are_passed_over_whatever_their_state(
    engine: Engine, settings: Settings
) -> None:
    upgrade.upgrade(engine, settings)
    before = shot(engine)
    empty = start(engine, settings)
    control.cancel(engine, empty)
    first = whole_run(engine, settings)
    second = whole_run(engine, settings)
    third = start(engine, settings)
    control.cancel(engine, third)
    assert set(second.rows.values()) == {0}
    chosen = rollback.targets(engine, None, force=False)
    assert [(run.id, run.rows > 0) for run in chosen] == [(first.run_id, True)]
    assert [run.id for run in rollback.left(engine)] == [first.run_id]
    # By name as well: nothing that was written later is in the way.
    rollback.start(engine, settings, first.run_id, force=False)
    found = go_on(engine, settings, str(first.run_id))
    assert (found.state, found.conflicts) == ("rolled_back", {})
    assert rollback.left(engine) == []
    states = {row["run_id"]: row["state"] for row in status.history(engine)}
    assert set(states.values()) == {"rolled_back"} and len(states) == 4
    assert status.read(engine, None).entities["users"].migrated == 0
    assert shot(engine) == before
    assert scalar(engine, "SELECT count(*) FROM migration.quarantine") == 0
    with pytest.raises(NotAllowed, match="rolled back already"):
        rollback.targets(engine, None, force=False)
    with pytest.raises(NotAllowed):
        control.resume(engine, settings, third)


@pytest.mark.long
def test_all_runs_with_rows_are_targets_newest_first_up_to_one_without_images(
    engine: Engine, settings: Settings, finished: RunReport
) -> None:
    ids = [str(finished.run_id)]
    for number in range(2):
        change(
            engine,
            "INSERT INTO gpt_subscriptions (id, user_id, gpt_id, status)"
            f" SELECT 'zz{number}', min(id), 'later', 'active' FROM users",
        )
        ids.append(str(whole_run(engine, settings).run_id))
    assert [run.id for run in rollback.targets(engine, None, force=False)] == ids[::-1]
    rollback.forget(engine, ids[1])
    assert [run.id for run in rollback.targets(engine, None, force=False)] == ids[2:]
    assert undo(engine, settings).run_id == ids[2]
    with pytest.raises(NotAllowed, match="were dropped") as refused:
        rollback.targets(engine, None, force=False)
    assert "restore" in refused.value.hint
    assert [run.id for run in rollback.left(engine)] == ids[1::-1]


def test_a_value_that_the_database_refuses_is_kept_and_listed(
    engine: Engine, settings: Settings, finished: RunReport
) -> None:
    user = scalar(engine, "SELECT user_id FROM ai_suites ORDER BY user_id LIMIT 1")
    change(
        engine,
        "ALTER TABLE users ADD CHECK"
        f" (id <> '{user}' OR billing_tier IS NOT NULL AND full_name IS DISTINCT FROM '')",
    )
    found = undo(engine, settings)
    assert (found.exit_status, found.conflicts["users refused"]) == (3, 1)
    assert scalar(engine, "SELECT count(*) FROM ai_suites WHERE user_id <> 'x'") == 1
    assert scalar(engine, f"SELECT credits_balance > 0 FROM users WHERE id = '{user}'")


def test_a_run_whose_images_are_dropped_cannot_be_rolled_back(
    engine: Engine, settings: Settings, finished: RunReport
) -> None:
    run_id = finished.run_id
    images = scalar(engine, "SELECT count(*) FROM migration.before_images")
    assert rollback.forget(engine, run_id) == (run_id, images)
    assert scalar(engine, "SELECT count(*) FROM migration.before_images") == 0
    with pytest.raises(NotAllowed, match="were dropped"):
        rollback.start(engine, settings, run_id, force=False)


@pytest.mark.long
@pytest.mark.parametrize("is_complete", [True, False], ids=["complete", "cancelled"])
@pytest.mark.parametrize("seed", range(3))
def test_an_application_that_goes_on_writing_loses_nothing_and_leaves_nothing_behind(
    engine: Engine, settings: Settings, seed: int, is_complete: bool
) -> None:
    with engine.connect() as connection:
        before = oracle.snapshot(connection, NAMES)
    migrating = start(engine, settings)

    def stop(stage: str) -> None:
        # No foreign key stands yet: whoever deletes a user leaves the rest behind.
        if stage == "switch" and not is_complete and status.read(engine, None).state == "running":
            control.cancel(engine, migrating)

    go_on(engine, settings, migrating, before=stop)
    application = Application(engine, seed=seed)
    # What a later run would leave alone is no matter of the rollback.
    application.spare()

    def write(stage: str) -> None:
        if stage.startswith("undo"):
            for _ in range(8):
                application.write()

    run_id = rollback.start(engine, settings, None, force=False)
    found = go_on(engine, settings, run_id, before=write)
    assert found.state == "rolled_back"
    assert application.refused == []
    held = {key for _, name, key, _ in kept(engine) if name == "ai_tools"}
    with engine.connect() as connection:
        assert set(connection.scalars(text("SELECT id FROM ai_tools"))) <= held
    for table in ("ai_suites", "tool_assignments", "tool_usage_logs", "credit_logs"):
        orphans = f"SELECT count(*) FROM {table} t LEFT JOIN users u ON u.id = t.user_id"
        assert scalar(engine, f"{orphans} WHERE u.id IS NULL") == 0
    again = whole_run(engine, settings)
    assert again.verification.differences == again.reconciliation.discrepancies == 0
    with engine.connect() as connection:
        assert oracle.compare_now(connection, before, GRANTS) == []
