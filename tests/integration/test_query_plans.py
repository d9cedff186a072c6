"""No statement of a batch reads more than its page: the cost would be the square of the users."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, event

from models.postgres import database as databases
from models.settings import Settings
from tests import variants
from tests.driving import change, go_on, start, whole_run

USERS, BATCH_SIZE = 3_000, 100
# For the short form: pages of so many users, and twenty times as many users.
SMALL_BATCH_SIZE = 25
# Each large table, and the rows of it that hang on a user of the sample.
LARGE = {
    "users": 1, "gpt_subscriptions": 3, "projects": 1, "ai_suites": 1, "ai_tools": 4,
    "tool_assignments": 4, "tool_usage_logs": 4, "credit_logs": 1, "before_images": 2,
}  # fmt: skip
PAGED = ("users", "projects", "switch", "verification", "reconciliation")


@contextmanager
def watching(engine: Engine, stage: list[str], most: float) -> Iterator[list[str]]:
    """Explains what batches of the paged stages execute; what reads too much is listed."""
    found: list[str] = []

    def explain(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if stage[-1] not in PAGED or len(statement) < 300 or "migration.batches" in statement:
            return
        if not statement.lstrip().startswith(("WITH", "INSERT", "SELECT")):
            return
        # The accounting is no page: it reads each table once.
        if "since AS MATERIALIZED" in statement:
            return
        # Building an index reads a table; cutting pages reads the keys of a window.
        if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
            return
        reads_keys = "WITH RECURSIVE page AS" in statement
        cursor.execute("SAVEPOINT explained")
        cursor.execute(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {statement}", parameters)
        (plan,) = cursor.fetchone()
        cursor.execute("ROLLBACK TO SAVEPOINT explained; RELEASE SAVEPOINT explained")
        (top,) = plan if isinstance(plan, list) else json.loads(plan)
        for table, kind, rows in _scans(top["Plan"]):
            if reads_keys and kind == "Index Only Scan":
                continue
            if rows > most * LARGE.get(table, rows):
                words = " ".join(statement.split())
                found.append(f"{stage[-1]}: {kind} of {rows:.0f} rows of {table} in {words[:400]}")

    event.listen(engine, "before_cursor_execute", explain)
    try:
        yield found
    finally:
        event.remove(engine, "before_cursor_execute", explain)


def _scans(node: dict[str, Any]) -> Iterator[tuple[str, str, float]]:
    """Each scan of a table: its name, its kind, and the rows that it read in all its loops."""
    if "Relation Name" in node and "Scan" in node["Node Type"]:
        rows = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
        yield node["Relation Name"], node["Node Type"], rows * node["Actual Loops"]
    for child in node.get("Plans", ()):
        yield from _scans(child)


def test_no_page_of_a_small_table_reads_more_than_itself(database: str, settings: Settings) -> None:
    stage = [""]
    engine = databases.create(database)
    with engine.begin() as connection:
        variants.PLAIN.build(connection, 20 * SMALL_BATCH_SIZE)
    with watching(engine, stage, 6 * SMALL_BATCH_SIZE) as found:
        small = settings.model_copy(update={"batch_size": SMALL_BATCH_SIZE})
        whole_run(engine, small, before=stage.append)
    engine.dispose()
    assert set(stage) >= set(PAGED)
    assert not found, "\n".join(dict.fromkeys(found))


@pytest.mark.long
def test_a_page_of_a_third_of_the_table_reads_no_more_than_that(
    engine: Engine, settings: Settings
) -> None:
    # A plan for so large a page would rather read all tables from end to end.
    stage = [""]
    with watching(engine, stage, 1_700) as found:
        whole_run(engine, settings.model_copy(update={"batch_size": 1_000}), before=stage.append)
    assert not found, "\n".join(dict.fromkeys(found))


@pytest.mark.long
def test_no_page_reads_more_than_itself_first_or_again_or_changed(
    engine: Engine, settings: Settings
) -> None:
    stage = [""]
    with watching(engine, stage, 600) as found:
        whole_run(engine, settings, before=stage.append)
        assert not found, "\n".join(dict.fromkeys(found))
        assert set(stage) >= set(PAGED)
        # Another run goes over rows that are there, and replays changes.
        run_id = start(engine, settings)

        def touch(now: str) -> None:
            if now == "switch" and stage[-1] != "switch":
                change(
                    engine,
                    "UPDATE gpt_subscriptions SET version = 'new' WHERE id IN"
                    " (SELECT id FROM gpt_subscriptions ORDER BY id LIMIT 50)",
                    "UPDATE projects SET active_gpt_id = 'other' WHERE id IN"
                    " (SELECT id FROM projects ORDER BY id LIMIT 50)",
                )
            stage.append(now)

        go_on(engine, settings, run_id, before=touch)
    assert not found, "\n".join(dict.fromkeys(found))
