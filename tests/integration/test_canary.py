"""A canary: some users are migrated for good, the others and the application notice nothing."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine

from models.errors import Misconfigured, NotAllowed
from models.ledger.selection import Choice
from models.postgres import database as databases
from models.reports.run import RunReport
from models.settings import DEFAULT_GRANTS, Settings, parse_grants
from producer.runs import advance, begin, control, rollback
from producer.schema import upgrade
from tests import oracle, variants
from tests.application import Application
from tests.driving import change, go_on, in_shape, scalar, whole_run
from tests.variants import Variant

USERS, BATCH_SIZE = 60, 10
NAMES = oracle.Names()
GRANTS = parse_grants(DEFAULT_GRANTS)
SELECTED = "(SELECT key FROM migration.selection)"
# What a canary must not leave behind, each a number of rows.
STRAYS = (
    f"SELECT count(*) FROM ai_suites WHERE user_id NOT IN {SELECTED}",
    f"SELECT count(*) FROM tool_usage_logs WHERE user_id NOT IN {SELECTED}",
    f"SELECT count(*) FROM credit_logs WHERE user_id NOT IN {SELECTED}",
    f"SELECT count(*) FROM migration.before_images WHERE legacy_key NOT IN {SELECTED}",
    "SELECT count(*) FROM projects p JOIN ai_tools t ON t.id = p.active_gpt_id",
    "SELECT count(*) FROM pg_attribute WHERE attrelid = 'users'::regclass AND attnotnull"
    " AND attname IN ('user_type', 'billing_tier', 'credits_balance', 'is_active')",
    "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'migration%'",
    "SELECT count(*) FROM migration.changes",
)
# Good rows of selected users, and what stands for them.
GOOD = (
    f"u.id IN {SELECTED} AND NOT EXISTS (SELECT FROM migration.quarantine q WHERE q.entity = 'user'"
    " AND q.legacy_key = u.id AND q.state = 'open')"
)
ASKED = (
    f"SELECT (SELECT count(*) FROM users u WHERE {GOOD}),"
    f" (SELECT count(*) FROM users u JOIN gpt_subscriptions s ON s.user_id = u.id WHERE {GOOD}"
    "  AND NOT EXISTS (SELECT FROM migration.quarantine q WHERE q.entity = 'subscription'"
    "   AND q.legacy_key = s.id AND q.state = 'open'))"
    f" + (SELECT count(*) FROM users u JOIN projects p ON p.user_id = u.id WHERE {GOOD}"
    "  AND p.active_gpt_id ~ '[^[:space:]]')"
)
FOUND = "SELECT (SELECT count(*) FROM ai_suites), (SELECT count(*) FROM ai_tools)"


@pytest.fixture
def engine(engine: Engine, settings: Settings) -> Engine:
    upgrade.upgrade(engine, settings)
    return engine


def snapshot(engine: Engine) -> oracle.Snapshot:
    with engine.connect() as connection:
        return oracle.snapshot(connection, NAMES)


def rows(engine: Engine, query: str) -> Any:
    with engine.connect() as connection:
        return connection.exec_driver_sql(query).all()


def canary(engine: Engine, settings: Settings, choice: Choice, **options: Any) -> RunReport:
    run_id, _ = advance.open_run(engine, settings, choice)
    return go_on(engine, settings, run_id, **options)


def wrong_rows(engine: Engine, before: oracle.Snapshot) -> list[str]:
    with engine.connect() as connection:
        return oracle.compare_now(connection, before, GRANTS)


def live_on(engine: Engine, settings: Settings, variant: Variant, seed: int) -> None:
    """A canary and a full run while an application writes at every moment, and a last run."""
    with engine.connect() as connection:
        before = oracle.snapshot(connection, variant.names)
    application = Application(engine, seed=seed, names=variant.names)

    def write(stage: str) -> None:
        if stage == "finish":
            application.spare()
        for _ in range(12 if stage != "finish" else 2):
            application.write()

    found = canary(engine, settings, Choice(percent=25), before=write)
    assert (found.exit_status in (0, 3), found.differences) == (True, {}), found.error
    if variant is variants.PLAIN:
        assert [scalar(engine, stray) for stray in STRAYS] == [0] * len(STRAYS)
    # The application continues, with foreign keys and defaults in place.
    for _ in range(200):
        application.write()
    full = whole_run(engine, settings, before=write)
    assert full.state.startswith("completed"), (full.error, full.differences)
    again = whole_run(engine, settings)
    assert (again.state, again.differences) == (full.state, {})
    assert application.refused == []
    with engine.connect() as connection:
        assert oracle.compare_now(connection, before, GRANTS) == []


@pytest.mark.long
@pytest.mark.parametrize("seed", range(6))
def test_a_canary_under_live_writes_and_then_a_full_run_end_like_a_full_run_alone(
    engine: Engine, settings: Settings, seed: int
) -> None:
    live_on(engine, settings, variants.PLAIN, seed)


@pytest.mark.long
@pytest.mark.parametrize("variant", variants.VARIANTS[1:], ids=str)
def test_so_it_is_in_any_shape_of_the_legacy_database(
    database: str, settings: Settings, variant: Variant
) -> None:
    with in_shape(database, settings, variant, USERS) as (engine, shaped):
        upgrade.upgrade(engine, shaped)
        live_on(engine, shaped, variant, seed=1)


def test_each_selected_row_is_accounted_for_once_and_no_other_row_is_touched(
    engine: Engine, settings: Settings
) -> None:
    legacy = "SELECT t::text FROM {0} t ORDER BY id"
    projects = rows(engine, legacy.format("projects"))
    others = f"SELECT u::text FROM users u WHERE id NOT IN {SELECTED} ORDER BY id"
    untouched = dict(rows(engine, "SELECT id, u::text FROM users u"))
    found = canary(engine, settings, Choice(percent=25))
    keys = scalar(engine, "SELECT count(*) FROM migration.selection")
    assert found.selection == {"percent": 25, "keys": keys}
    assert 0 < keys == found.entities["users"].total < USERS
    for name, standing in found.entities.items():
        key = "id" if name == "users" else "user_id"
        table = {"subscriptions": "gpt_subscriptions"}.get(name, name)
        total = scalar(engine, f"SELECT count(*) FROM {table} WHERE {key} IN {SELECTED}")
        assert standing.total == total == standing.migrated + standing.quarantined
    assert found.verification.rows_checked == sum(s.total for s in found.entities.values())
    assert found.reconciliation.checked == keys
    assert rows(engine, ASKED) == rows(engine, FOUND)
    assert [scalar(engine, stray) for stray in STRAYS] == [0] * len(STRAYS)
    assert rows(engine, legacy.format("projects")) == projects
    assert {row[0] for row in rows(engine, others)} <= set(untouched.values())


@pytest.mark.long
def test_what_is_wrong_with_a_selected_row_is_found_and_fixed_by_a_retry(
    engine: Engine, settings: Settings
) -> None:
    run_id = canary(engine, settings, Choice(percent=25)).run_id
    tool = "(SELECT min(id) FROM ai_tools WHERE configuration ->> 'project_id' <> '')"
    for fault, named in (
        (f"UPDATE ai_tools SET name = 'forged' WHERE id = {tool}", "project wrong_value ai_tools"),
        (f"DELETE FROM ai_tools WHERE id = {tool}", "project missing ai_tools"),
    ):
        change(engine, fault)
        control.check_again(engine, settings, run_id, "verification")
        found = go_on(engine, settings, run_id)
        assert found.exit_status == 4
        assert any(name.startswith(named) for name in found.differences), found.differences
        control.retry(engine, settings, run_id)
        assert go_on(engine, settings, run_id).differences == {}
    assert rows(engine, ASKED) == rows(engine, FOUND)
    change(engine, "DELETE FROM credit_logs")
    control.check_again(engine, settings, run_id, "reconciliation")
    assert go_on(engine, settings, run_id).exit_status == 4


@pytest.mark.long
def test_a_canary_is_rolled_back_row_for_row_and_a_full_run_follows(
    engine: Engine, settings: Settings
) -> None:
    before = snapshot(engine)
    first = canary(engine, settings, Choice(percent=25))
    second = canary(engine, settings, Choice(percent=50))
    with pytest.raises(NotAllowed, match="wrote rows after"):
        rollback.start(engine, settings, first.run_id, force=False)
    for run in (second, first):
        undone = go_on(engine, settings, rollback.start(engine, settings, run.run_id, force=False))
        assert (undone.state, undone.conflicts) == ("rolled_back", {})
    assert snapshot(engine) == before
    assert whole_run(engine, settings).exit_status == 3
    assert wrong_rows(engine, before) == []


@pytest.mark.long
def test_a_full_run_after_a_canary_is_rolled_back_before_it(
    engine: Engine, settings: Settings
) -> None:
    before = snapshot(engine)
    some = canary(engine, settings, Choice(percent=25)).entities["users"]
    between = snapshot(engine)
    total = whole_run(engine, settings).entities["users"].total
    assert total > some.total
    left = [(total, some.migrated, some.quarantined), (some.total, 0, 0)]
    for expected, standing in zip((between, before), left, strict=True):
        undone = go_on(engine, settings, rollback.start(engine, settings, None, force=False))
        assert (undone.state, undone.conflicts) == ("rolled_back", {})
        assert tuple(undone.entities["users"].model_dump().values()) == standing
        assert snapshot(engine) == expected


def test_the_share_is_the_same_each_time_and_the_larger_one_holds_the_smaller(
    engine: Engine, settings: Settings
) -> None:
    chosen = []
    for percent in (10, 40, 40):
        run_id, _ = advance.open_run(engine, settings, Choice(percent=percent))
        query = f"SELECT key FROM migration.selection WHERE run_id = '{run_id}'"
        chosen.append({row[0] for row in rows(engine, query)})
        control.cancel(engine, run_id)
    assert set() < chosen[0] < chosen[1] == chosen[2]


def test_only_the_same_selection_joins_an_open_canary(engine: Engine, settings: Settings) -> None:
    first, second = (row[0] for row in rows(engine, "SELECT id FROM users ORDER BY id LIMIT 2"))
    run_id, _ = advance.open_run(engine, settings, Choice(only=(first, second)))
    assert advance.open_run(engine, settings, Choice(only=(second, first))) == (run_id, False)
    for other in (Choice(only=(first,)), Choice(percent=5), None):
        with pytest.raises(NotAllowed, match="is of 2 keys"):
            advance.open_run(engine, settings, other)
    assert go_on(engine, settings, run_id).entities["users"].total == 2


@pytest.mark.usefixtures("bare", "is_sampled")
def test_a_choice_of_no_rows_is_refused_before_the_schema_step(
    database: str, settings: Settings
) -> None:
    legacy = databases.create(database)
    choices = {
        "no row with the key nobody": Choice(only=("nobody",)),
        "names no key": Choice(only=()),
        "no rows at all": Choice(percent=1e-9),
    }
    for words, choice in choices.items():
        with pytest.raises(Misconfigured, match=words) as refused:
            begin.begin(legacy, settings, choice)
        assert refused.value.hint.endswith("No run was opened.")
    assert scalar(legacy, "SELECT to_regnamespace('migration') IS NULL")
    assert scalar(legacy, "SELECT to_regclass('ai_suites') IS NULL")
    legacy.dispose()


@pytest.mark.long
def test_what_cannot_be_a_canary_is_refused_by_name_and_changes_nothing(
    engine: Engine, settings: Settings
) -> None:
    with pytest.raises(Misconfigured, match="no row with the key nobody"):
        advance.open_run(engine, settings, Choice(only=("nobody",)))
    with pytest.raises(Misconfigured, match="no rows at all"):
        advance.open_run(engine, settings, Choice(percent=1e-9))
    assert scalar(engine, "SELECT count(*) FROM migration.runs") == 0
    canary_id = canary(engine, settings, Choice(percent=25)).run_id
    full = whole_run(engine, settings)
    with pytest.raises(NotAllowed, match=f"Run {full.run_id} of all rows"):
        advance.open_run(engine, settings, Choice(percent=50))
    with pytest.raises(NotAllowed, match=f"Run {full.run_id} of all rows has come since"):
        control.retry(engine, settings, canary_id)


@pytest.mark.long
def test_a_user_who_is_quarantined_is_migrated_by_a_retry_of_the_canary(
    engine: Engine, settings: Settings
) -> None:
    bad = scalar(engine, "SELECT id FROM users WHERE btrim(email) = '' ORDER BY id LIMIT 1")
    other = f"SELECT min(id) FROM users WHERE btrim(email) <> '' AND id NOT IN {SELECTED}"
    found = canary(engine, settings, Choice(only=(bad,)))
    assert (found.exit_status, found.entities["users"].quarantined) == (3, 1)
    # Another canary has nothing to do with that row.
    second = canary(engine, settings, Choice(only=(scalar(engine, other),)))
    assert second.entities["users"].quarantined == 0
    change(engine, f"UPDATE users SET email = 'good@now.example' WHERE id = '{bad}'")
    control.retry(engine, settings, second.run_id)
    assert go_on(engine, settings, second.run_id).differences == {}
    assert scalar(engine, f"SELECT count(*) FROM ai_suites WHERE user_id = '{bad}'") == 0
    control.retry(engine, settings, found.run_id)
    assert go_on(engine, settings, found.run_id).entities["users"].migrated == 1
    assert rows(engine, ASKED) == rows(engine, FOUND)
