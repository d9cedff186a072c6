"""A canary as an operator meets it: its options, a killed worker, and the full run after it."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from models.settings import DEFAULT_GRANTS, parse_grants
from tests import oracle, variants
from tests.acceptance.conftest import COMMAND_SECONDS, Product, batches, count, kill_group
from tests.wait import until

OLD_APPLICATION = (
    "INSERT INTO users (id, email, hashed_password, full_name)"
    " VALUES ('late', 'late@school.example', '', '')",
    "INSERT INTO projects (id, user_id, name, status, active_gpt_id)"
    " SELECT 'late', min(key), 'late', 'active', 'late_gpt' FROM migration.selection",
    "UPDATE gpt_subscriptions SET gpt_id = 'changed' WHERE user_id IN"
    " (SELECT key FROM migration.selection) AND btrim(gpt_id) <> ''",
    "DELETE FROM users WHERE id = (SELECT max(key) FROM migration.selection)",
)


@pytest.mark.long
def test_a_canary_survives_a_kill_and_a_full_run_takes_up_the_rest(product: Product) -> None:
    product.environment["MIGRATION_BATCH_SIZE"] = "5"
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, 300)
        before = oracle.snapshot(connection, oracle.Names())
    chosen = ("enqueue-all", "--percent", "20")
    waiting = product.start(*chosen, "--wait", "--json")
    with product.worker() as first:
        until(lambda: batches(product, "done") >= 20)
        kill_group(first)
    # The same command joins it; another one would migrate other rows than it says.
    again = product.run(*chosen, "--json").json
    other = product.run("enqueue-all", "--json")
    assert (other.status, other.json["error"]["kind"]) == (1, "not_allowed")
    assert "producer enqueue-all --percent 20 --wait" in other.json["error"]["hint"]
    with product.worker():
        _, err = waiting.communicate(timeout=COMMAND_SECONDS)
        assert waiting.returncode in (0, 3), err
        found = product.run("status", "--json")
        assert (found.status, found.json["run_id"]) == (waiting.returncode, again["run_id"])
        keys = count(product, "SELECT count(*) FROM migration.selection")
        assert found.json["selection"] == {"percent": 20, "keys": keys}
        assert found.json["users"]["total"] == keys < 300
        assert f"20 %, {keys} keys" in product.run("status").out
        # The schema is open, and no project points at a tool.
        with product.engine.begin() as connection:
            for statement in OLD_APPLICATION:
                connection.execute(text(statement))
        named = "SELECT count(*) FROM projects p JOIN ai_tools t ON t.id = p.active_gpt_id"
        assert count(product, named) == 0
        full = product.run("enqueue-all", "--wait", "--json")
    assert (full.status, full.json["selection"]) == (3, None), full.err
    with product.engine.connect() as connection:
        assert oracle.compare_now(connection, before, parse_grants(DEFAULT_GRANTS)) == []


def test_wrong_choices_are_refused_by_name(product: Product) -> None:
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, 5)
    both = product.run("enqueue-all", "--percent", "1", "--only", "x", "--json")
    assert (both.status, both.json["error"]["kind"]) == (2, "usage")
    assert product.run("enqueue-all", "--percent", "100", "--json").status == 2
    unknown = product.run("enqueue-all", "--only", "nobody,noone", "--json")
    assert unknown.status == 2
    assert "the key nobody, noone" in unknown.json["error"]["message"]
    assert count(product, "SELECT count(*) FROM migration.runs") == 0
