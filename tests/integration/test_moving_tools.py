"""Two batches and the application meet at one subscription that changes hands."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from models.engine.live import replay
from models.postgres import database as databases
from models.settings import Settings
from tests.driving import change, go_on, scalar, start, wait_for_lock, whole_run
from worker import batch

USERS = 60
# A session that asks for it waits here, with the tools written and the rest to come.
HOLD = """
CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF current_setting('test.hold', true) = 'on' THEN PERFORM pg_advisory_xact_lock(1); END IF;
  RETURN NULL;
END $$
"""


@pytest.fixture(autouse=True)
def _a_batch_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "KEYS_A_BATCH", 1)


@pytest.mark.parametrize("order", ["min", "max"])
def test_a_subscription_that_is_quarantined_with_its_new_owner_leaves_nothing_behind(
    engine: Engine, settings: Settings, order: str
) -> None:
    # The batch of the new owner comes before that of the old one, or after it.
    done: list[str] = []

    def move(stage: str) -> None:
        if stage == "verification" and not done:
            done.append(stage)
            change(
                engine,
                "UPDATE gpt_subscriptions SET preferences = '[1]', user_id ="
                f" (SELECT {order}(user_id) FROM ai_suites) WHERE id ="
                " (SELECT substr(min(t.id), 3) FROM ai_tools t JOIN ai_suites s ON s.id = suite_id"
                f" WHERE t.id LIKE 't-%' AND user_id <> (SELECT {order}(user_id) FROM ai_suites))",
            )

    ended = whole_run(engine, settings, before=move)
    assert done and (ended.exit_status, ended.differences) == (3, {})


@pytest.mark.long
def test_a_tool_that_its_old_owner_loses_while_the_new_one_is_written_leaves_nothing_behind(
    engine: Engine, settings: Settings, database: str
) -> None:
    run_id = start(engine, settings)
    holding = databases.create(f"{database}&options=-ctest.hold%3Don")
    found: dict[str, Any] = {}

    def move(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "read_subscription AS MATERIALIZED" in statement and "moved" not in found:
            found["moved"] = True
            change(engine, f"UPDATE gpt_subscriptions SET user_id = '{found['new']}'"
                   f" WHERE id = '{found['key']}'")  # fmt: skip

    def meet(stage: str) -> None:
        if stage == "projects" and not found:
            with engine.connect() as connection:
                row = connection.execute(
                    text(
                        "SELECT s.user_id AS old, substr(t.id, 3) AS key,"
                        " (SELECT max(user_id) FROM ai_suites) AS new"
                        " FROM ai_tools t JOIN ai_suites s ON s.id = t.suite_id"
                        " WHERE t.id LIKE 't-%' ORDER BY t.id LIMIT 1"
                    )
                ).one()
            found.update(row._mapping)
            change(engine, HOLD, "CREATE TRIGGER hold BEFORE INSERT ON tool_assignments"
                   " FOR EACH STATEMENT EXECUTE FUNCTION hold()",
                   "UPDATE users SET email = 'x' || email"
                   f" WHERE id IN ('{found['old']}', '{found['new']}')")  # fmt: skip
        if stage == "switch" and "moved" not in found and (ids := _changed_users(engine)):
            event.listen(holding, "before_cursor_execute", move)
            writing = threading.Thread(
                target=batch.run, args=(holding, settings, run_id, ids[found["new"]], "new")
            )
            with engine.begin() as held:
                held.execute(text("SELECT pg_advisory_xact_lock(1)"))
                writing.start()
                wait_for_lock(engine)
                batch.run(engine, settings, run_id, ids[found["old"]], "old")
                change(engine, f"DELETE FROM gpt_subscriptions WHERE id = '{found['key']}'")
            writing.join()

    ended = go_on(engine, settings, run_id, before=meet)
    holding.dispose()
    assert found["moved"] and (ended.exit_status, ended.differences) == (3, {})
    for table in ("tool_assignments", "tool_usage_logs"):
        assert not scalar(
            engine, f"SELECT count(*) FROM {table} WHERE tool_id = 't-{found['key']}'"
        )


def _changed_users(engine: Engine) -> dict[str, int]:
    with engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT key_list[1] AS key, id FROM migration.batches"
                " WHERE step = 'changed_users' AND state = 'pending'"
            )
        ).all()
    return {row.key: row.id for row in rows}


def test_a_projects_tool_without_suite_and_log_goes_with_its_project(
    engine: Engine, settings: Settings
) -> None:
    # What is left where the tool was written while its owner's batch took away all that was there.
    lost: list[str] = []

    def lose(stage: str) -> None:
        if stage == "switch" and not lost:
            tool = scalar(engine, "SELECT min(id) FROM ai_tools WHERE id LIKE 'p-%'")
            owner = scalar(engine, f"SELECT user_id FROM projects WHERE id = substr('{tool}', 3)")
            lost.append(str(tool))
            change(
                engine,
                f"UPDATE users SET email = repeat(' ', 7) WHERE id = '{owner}'",
                f"DELETE FROM tool_usage_logs WHERE tool_id = '{tool}'",
                f"DELETE FROM tool_assignments WHERE tool_id = '{tool}'",
                f"UPDATE ai_tools SET suite_id = 'gone' WHERE id = '{tool}'",
            )

    ended = whole_run(engine, settings, before=lose)
    assert (ended.exit_status, ended.differences) == (3, {})
    assert not scalar(engine, f"SELECT count(*) FROM ai_tools WHERE id = '{lost[0]}'")
