"""What the database refuses, at once or at COMMIT: one bad row costs that row, all rows the batch.

The engine runs in this process, on tables with constraints and triggers of the application.
"""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, event

from models.reports.run import RunReport
from models.settings import Settings
from producer.runs import control, rollback
from tests.driving import change, go_on, scalar, start, whole_run
from tests.integration.test_live_writes import snapshot, wrong_rows
from tests.short import short
from worker import batch

USERS, BATCH_SIZE = 200, 100

LATE = (
    "CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
    " IF {when} THEN RAISE EXCEPTION 'no'; END IF; RETURN NULL; END $$"
)
TRIGGER = (
    "CREATE CONSTRAINT TRIGGER late AFTER INSERT OR UPDATE OR DELETE ON {table}"
    " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION late()"
)
REFUSE = (
    "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN RAISE EXCEPTION 'closed'; END $$"
)
MIGRATED = "SELECT user_id FROM ai_suites ORDER BY user_id"
REJECTED = (
    "SELECT count(*) FROM migration.quarantine"
    " WHERE reason = 'rejected' AND state = 'open' AND entity = '{}'"
)

ATTEMPTED = "SELECT count(*) FROM migration.batches WHERE stage = 'users' AND step = 'users'"


def rejected(engine: Engine, entity: str) -> int:
    return int(scalar(engine, REJECTED.format(entity)))


def error_of(engine: Engine) -> str:
    return str(scalar(engine, "SELECT error FROM migration.runs"))


def prepare(engine: Engine, settings: Settings, *statements: str) -> str:
    """Open a run on an expanded schema, with these statements executed on it."""
    run_id = start(engine, settings)
    change(engine, *statements)
    return run_id


def three(engine: Engine, query: str) -> str:
    """Three of the values that a query finds, as an SQL list."""
    with engine.connect() as connection:
        found = connection.exec_driver_sql(query).scalars().all()
    return ", ".join(f"'{key}'" for key in (found[0], found[len(found) // 2], found[-1]))


GOOD_USERS = "SELECT id FROM users WHERE email LIKE '%%@%%' ORDER BY id"
GOOD_TOOLS = (
    "SELECT 't-' || s.id FROM gpt_subscriptions s JOIN users u ON u.id = s.user_id"
    " WHERE u.email LIKE '%%@%%' AND s.gpt_id ~ '[a-z]'"
    " AND s.preferences::text LIKE '{%%rate_limit%%}' ORDER BY s.id"
)
GOOD_PROJECTS = (
    "SELECT p.id FROM projects p JOIN users u ON u.id = p.user_id"
    " WHERE u.email LIKE '%%@%%' AND p.active_gpt_id ~ '[a-z]' ORDER BY p.id"
)


@pytest.mark.parametrize(
    ("table", "query", "entity"),
    [
        pytest.param("users", GOOD_USERS, "user", marks=pytest.mark.long),
        pytest.param("ai_suites", GOOD_USERS, "user", marks=pytest.mark.long),
        pytest.param("ai_tools", GOOD_TOOLS, "subscription", marks=pytest.mark.long),
        ("projects", GOOD_PROJECTS, "project"),
    ],
)
def test_a_deferred_trigger_that_raises_for_three_rows_costs_these_three(
    engine: Engine, settings: Settings, table: str, query: str, entity: str
) -> None:
    before = snapshot(engine)
    key = "NEW.user_id" if table == "ai_suites" else "NEW.id"
    bad = three(engine, query)
    late = LATE.format(when=f"TG_OP <> 'DELETE' AND {key} IN ({bad})")
    run_id = prepare(engine, settings, late, TRIGGER.format(table=table))
    ended = go_on(engine, settings, run_id)
    assert ended.exit_status == 3, (ended.error, ended.differences)
    assert rejected(engine, entity) == 3
    change(engine, "DROP FUNCTION late() CASCADE")
    control.retry(engine, settings, run_id)
    assert go_on(engine, settings, run_id).exit_status == 3
    assert rejected(engine, entity) == 0
    assert wrong_rows(engine, before) == []


def test_a_deferred_trigger_that_is_newer_than_the_catalog_as_read_costs_its_rows_too(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = three(engine, GOOD_USERS)
    run_id = start(engine, settings)
    steps: list[str] = []
    real = batch._attempt

    def attempt(*arguments: Any) -> Any:
        claim = arguments[2]
        steps.append(claim.step)
        if steps.count("users") == 2 and steps[-1] == "users":
            late = LATE.format(when=f"NEW.user_id IN ({bad})")
            change(engine, late, TRIGGER.replace(" OR DELETE", "").format(table="ai_suites"))
        return real(*arguments)

    monkeypatch.setattr(batch, "_attempt", attempt)
    ended = go_on(engine, settings, run_id)
    assert ended.exit_status == 3, (ended.error, ended.differences)
    # The first batch has committed its rows before.
    assert 0 < rejected(engine, "user") < 3
    # It was attempted twice: as the catalog was, and as it is.
    assert steps.count("users") > scalar(engine, ATTEMPTED)


@pytest.mark.long
def test_a_deferred_unique_constraint_costs_the_rows_that_repeat_a_value(
    engine: Engine, settings: Settings
) -> None:
    unique = "ALTER TABLE ai_tools ADD UNIQUE (suite_id, name) DEFERRABLE INITIALLY DEFERRED"
    run_id = prepare(engine, settings, unique)
    ended = go_on(engine, settings, run_id)
    assert ended.exit_status == 3, (ended.error, ended.differences)
    assert rejected(engine, "subscription") + rejected(engine, "project") > 0
    assert scalar(engine, "SELECT count(*) FROM ai_tools")
    assert "23505" in scalar(
        engine, "SELECT min(message) FROM migration.quarantine WHERE reason = 'rejected'"
    )


def test_what_is_deferred_stays_so_between_the_parts_of_a_batch(
    engine: Engine, settings: Settings
) -> None:
    """Each trigger finds the usage log that comes after its tool, in bisected batches too."""
    bad = three(engine, GOOD_USERS)
    run_id = prepare(
        engine,
        settings,
        LATE.format(when=f"NEW.user_id IN ({bad})"),
        "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON ai_suites"
        " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION late()",
        "CREATE TABLE noted (at_once boolean)",
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO noted"
        " SELECT NOT EXISTS (SELECT FROM tool_usage_logs l WHERE l.tool_id = NEW.id);"
        " RETURN NULL; END $$",
        "CREATE CONSTRAINT TRIGGER note AFTER INSERT ON ai_tools"
        " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION note()",
    )
    ended = go_on(engine, settings, run_id)
    assert ended.exit_status == 3, (ended.error, ended.differences)
    assert scalar(engine, "SELECT count(*) FROM noted WHERE NOT at_once")
    assert not scalar(engine, "SELECT count(*) FROM noted WHERE at_once")


def test_a_row_that_is_refused_at_commit_under_the_last_lock_is_quarantine(
    engine: Engine, settings: Settings
) -> None:
    changed: list[str] = []

    def before(stage: str) -> None:
        if stage == "finish" and not changed:
            changed.append(stage)
            change(
                engine,
                "INSERT INTO users (id, email, hashed_password, full_name)"
                " VALUES ('live1', 'bad@live.example', '', ''),"
                " ('live2', 'good@live.example', '', '')",
                LATE.format(when="NEW.name LIKE 'bad%'"),
                TRIGGER.replace(" OR DELETE", "").format(table="ai_suites"),
            )

    ended = whole_run(engine, settings, before=before)
    assert ended.exit_status == 3, (ended.error, ended.differences)
    assert rejected(engine, "user") == 1
    assert scalar(engine, "SELECT count(*) FROM ai_suites WHERE user_id = 'live2'") == 1


def refuse_on(table: str, when: str = "") -> tuple[str, str]:
    condition = f"WHEN ({when})" if when else ""
    return REFUSE, (
        f"CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW {condition}"
        " EXECUTE FUNCTION refuse()"
    )


ALL_REFUSED = {
    "a trigger on the users": refuse_on("users"),
    "a trigger on the suites": refuse_on("ai_suites"),
    "a deferred trigger": (LATE.format(when="true"), TRIGGER.format(table="ai_suites")),
    "a check of the tools": ("ALTER TABLE ai_tools ADD CHECK (tool_type <> 'gpt')",),
    "a deferred key": (
        "CREATE TABLE kinds (id text PRIMARY KEY)",
        "ALTER TABLE ai_tools ADD FOREIGN KEY (tool_type) REFERENCES kinds"
        " DEFERRABLE INITIALLY DEFERRED",
    ),
    "a trigger on the logs": refuse_on("tool_usage_logs"),
    "a check of the projects' tools": ("ALTER TABLE ai_tools ADD CHECK (id NOT LIKE 'p-%')",),
    "a trigger on the projects": refuse_on("projects"),
}


@pytest.mark.parametrize(
    "kind",
    short(ALL_REFUSED, "a trigger on the users", "a deferred key"),
)
def test_a_table_that_refuses_all_rows_fails_the_batch_and_quarantines_nobody(
    engine: Engine, settings: Settings, kind: str
) -> None:
    before = snapshot(engine)
    run_id = prepare(engine, settings, *ALL_REFUSED[kind])
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *call: statements.append(call[2]))
    ended = go_on(engine, settings, run_id)
    assert (ended.state, ended.exit_status) == ("failed", 1)
    assert ended.error and "The database refuses every" in ended.error.message
    assert "closed" not in ended.error.message
    assert not scalar(engine, "SELECT count(*) FROM migration.quarantine WHERE reason = 'rejected'")
    # However many rows a batch has.
    failed = scalar(engine, "SELECT count(*) FROM migration.batches WHERE state = 'failed'")
    tries = sum("SAVEPOINT" in each for each in statements)
    assert tries <= 300 * failed
    change(
        engine,
        "DROP FUNCTION IF EXISTS late() CASCADE",
        "DROP FUNCTION IF EXISTS refuse() CASCADE",
        "DO $$ DECLARE c record; BEGIN FOR c IN SELECT conname FROM pg_constraint"
        " WHERE conrelid = 'ai_tools'::regclass"
        " AND (contype = 'c' OR conname = 'ai_tools_tool_type_fkey')"
        " LOOP EXECUTE format('ALTER TABLE ai_tools DROP CONSTRAINT %I', c.conname);"
        " END LOOP; END $$",
    )
    control.retry(engine, settings, run_id)
    assert go_on(engine, settings, run_id).exit_status == 3
    assert wrong_rows(engine, before) == []


@pytest.mark.long
@pytest.mark.parametrize("size", [60, 200])
@pytest.mark.parametrize(
    ("table", "key", "entity"),
    [
        ("ai_suites", "NEW.user_id", "user"),
        (
            "tool_assignments",
            "NEW.user_id",
            "subscription",
        ),
    ],
)
def test_a_first_part_that_is_all_bad_costs_that_part_only(
    engine: Engine, settings: Settings, table: str, key: str, entity: str, size: int
) -> None:
    """The first sixty users of a batch are refused, and none has passed when it is asked."""
    settings = settings.model_copy(update={"batch_size": size + 40})
    bad = f"(SELECT id FROM users ORDER BY id LIMIT {60 if size > 60 else 50})"
    refuse = REFUSE.replace(
        "BEGIN RAISE EXCEPTION 'closed'; END",
        f"BEGIN IF {key} IN {bad} THEN RAISE EXCEPTION 'closed'; END IF; RETURN NEW; END",
    )
    run_id = prepare(
        engine,
        settings,
        refuse,
        f"CREATE TRIGGER refuse BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    ended = go_on(engine, settings, run_id)
    assert ended.exit_status == 3, (ended.error, ended.differences)
    assert rejected(engine, entity) >= 40
    assert scalar(engine, f"SELECT count(*) FROM {table}") > 100


@pytest.mark.long
def test_twenty_bad_rows_among_good_ones_are_quarantine(engine: Engine, settings: Settings) -> None:
    bad = "(SELECT id FROM users WHERE email LIKE '%@%' ORDER BY md5(id) LIMIT 60)"
    late = LATE.format(when=f"NEW.user_id IN {bad}")
    run_id = prepare(
        engine, settings, late, TRIGGER.replace(" OR DELETE", "").format(table="ai_suites")
    )
    ended = go_on(engine, settings, run_id)
    assert ended.exit_status == 3, (ended.error, ended.differences)
    assert rejected(engine, "user") == 60
    # A retry tries bad rows only: that they are refused again is no news.
    control.retry(engine, settings, run_id)
    again = go_on(engine, settings, run_id)
    assert again.exit_status == 3, (again.error, again.differences)
    assert rejected(engine, "user") == 60


@pytest.mark.long
def test_a_rollback_that_is_refused_for_all_rows_fails(
    engine: Engine, settings: Settings, finished: RunReport
) -> None:
    assert finished.run_id
    change(engine, *refuse_on("users"))
    rollback.start(engine, settings, finished.run_id, force=False)
    found = go_on(engine, settings, finished.run_id)
    assert found.state == "failed" and found.error
    assert "The database refuses every user" in found.error.message
    change(engine, "DROP FUNCTION refuse() CASCADE")
    rollback.start(engine, settings, finished.run_id, force=False)
    assert go_on(engine, settings, finished.run_id).state == "rolled_back"
