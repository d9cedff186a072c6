"""`producer rollback` as an operator meets it: asks first, survives a kill, and ends right."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from sqlalchemy import text

from tests import oracle, variants
from tests.acceptance.conftest import COMMAND_SECONDS, Product, batches, count, kill_group, said
from tests.wait import until

NAMES = oracle.Names()
UNDONE = "SELECT count(*) FROM migration.batches WHERE step = 'undo_users' AND state = 'done'"


@pytest.mark.long
def test_a_rollback_asks_and_goes_on_after_a_kill_to_the_state_before(product: Product) -> None:
    product.environment["MIGRATION_BATCH_SIZE"] = "10"
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, 300)
    assert product.run("schema", "upgrade").status == 0
    with product.engine.connect() as connection:
        before = oracle.snapshot(connection, NAMES)
    with product.worker():
        assert product.run("enqueue-all", "--wait", "--json").status == 3
    unasked = product.run("rollback", "--json")
    assert (unasked.status, unasked.json["error"]["kind"]) == (2, "misconfigured")
    waiting = product.start("rollback", "--wait", "--yes", "--json")
    with product.worker() as first:
        until(lambda: count(product, UNDONE) >= 5)
        kill_group(first)
    assert count(product, UNDONE) < 30
    joined = product.run("enqueue-all", "--json")
    assert "is being rolled back" in joined.json["error"]["message"]
    with product.worker():
        _, err = waiting.communicate(timeout=COMMAND_SECONDS)
    assert waiting.returncode == 0, err
    status = product.run("status", "--json")
    assert (status.status, status.json["state"]) == (0, "rolled_back")
    assert status.json["users"]["migrated"] == 0 and status.json["rows"]["ai_tools"] == 0
    assert batches(product, "pending") + batches(product, "running") == 0
    with product.engine.connect() as connection:
        assert asdict(oracle.snapshot(connection, NAMES)) == asdict(before)
    again = product.run("rollback", "--yes", "--json")
    assert (again.status, again.json["error"]["kind"]) == (1, "not_allowed")


def test_what_is_kept_is_said_with_the_command_that_undoes_it(product: Product) -> None:
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, 60)
    with product.worker():
        assert product.run("enqueue-all", "--wait").status == 3
        with product.engine.begin() as connection:
            connection.execute(
                text(
                    "UPDATE ai_suites SET name = 'Mine' WHERE user_id = (SELECT"
                    " min(user_id) FROM ai_suites)"
                )
            )
        kept = product.run("rollback", "--wait", "--yes")
        assert kept.status == 3, kept.err
        assert "--force" in kept.out and "ai_suites" in kept.out
        forced = product.run("rollback", "--wait", "--yes", "--force", "--json")
    # The newest run is rolled back; it is named by default, since nothing else is left to undo.
    assert (forced.status, forced.json["conflicts"]) == (0, {})
    assert count(product, "SELECT count(*) FROM ai_suites") == 0


@pytest.mark.long
def test_a_rollback_without_a_run_undoes_all_of_them_and_says_what_is_left(
    product: Product,
) -> None:
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, 60)
    with product.worker():
        first = product.run("enqueue-all", "--wait", "--json").json["run_id"]
        with product.engine.begin() as connection:
            connection.execute(
                text(
                    "INSERT INTO gpt_subscriptions (id, user_id, gpt_id, status)"
                    " SELECT 'zz', min(user_id), 'later', 'active' FROM ai_suites"
                )
            )
        second = product.run("enqueue-all", "--wait", "--json").json["run_id"]
        product.run("enqueue-all", "--wait")
        # One of two: whatever is left is no success.
        one = product.run("rollback", second, "--wait", "--yes", "--json")
        assert (one.status, one.json["state"]) == (3, "rolled_back")
        assert (one.json["rolled_back"], one.json["standing"]) == ([second], [first])
        assert f"producer rollback {first} --wait" in one.err
        again = product.run("enqueue-all", "--wait", "--json").json["run_id"]
        ended = product.run("rollback", "--wait", "--yes", "--json")
    assert (ended.status, ended.json["run_id"], ended.json["state"]) == (0, first, "rolled_back")
    assert (ended.json["rolled_back"], ended.json["standing"]) == ([again, first], [])
    assert "/test_" in ended.json["database"] and ended.json["database"] in ended.err
    assert count(product, "SELECT count(*) FROM ai_suites") == 0
    assert product.run("schema", "downgrade", "--yes").status == 0
    nothing = product.run("rollback", "--yes", "--json")
    assert (nothing.json["rolled_back"], nothing.json["standing"]) == ([], [])


@pytest.mark.long
def test_a_rollback_that_nobody_waits_for_is_no_success_yet(product: Product) -> None:
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, 60)
    with product.worker():
        run = product.run("enqueue-all", "--wait", "--json").json["run_id"]
    started = product.run("rollback", "--yes", "--json")
    assert (started.status, started.json["state"]) == (3, "rolling_back")
    assert started.json["standing"] == [run]
    # It joins while nobody can finish the rollback: after its end there is nothing to wait for.
    waiting = product.start("rollback", "--wait", "--yes", "--json")
    said(waiting, "No worker is running")
    with product.worker():
        out, err = waiting.communicate(timeout=COMMAND_SECONDS)
    assert waiting.returncode == 0, err
    ended = json.loads(out)
    assert (ended["rolled_back"], ended["standing"]) == ([run], [])
