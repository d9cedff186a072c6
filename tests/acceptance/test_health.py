"""`producer health` and `performance` as a monitor calls them: one JSON, an exit status."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text

from tests import variants
from tests.acceptance.conftest import Ended, Product
from tests.integration.test_probing import closed_port, serving
from tests.wait import until


@pytest.fixture
def migrated(module_product: Product) -> Product:
    """A school that was migrated; made once."""
    with module_product.engine.connect() as connection:
        is_there = connection.scalar(text("SELECT to_regclass('users')"))
    if not is_there:
        with module_product.engine.begin() as connection:
            variants.PLAIN.build(connection, 100)
        with module_product.worker():
            assert module_product.run("enqueue-all", "--wait").status == 3
    return module_product


def verdicts(found: dict[str, Any]) -> dict[str, str]:
    assert found["error"] is None, found
    return {check["name"]: check["verdict"] for check in found["checks"]}


def failed(found: Ended) -> dict[str, dict[str, Any]]:
    """The speeds beyond their limits, by name."""
    return {each["name"]: each for each in found.json["speeds"] if each["verdict"] == "failed"}


def test_what_answers_is_said_and_what_does_not_ends_with_status_5(migrated: Product) -> None:
    with serving() as address, migrated.worker():

        def health(urls: str) -> Ended:
            """What it says once the workers answer: on a busy machine they do so late."""
            looks: list[Ended] = []

            def answers() -> bool:
                looks.append(migrated.run("health", "--json", MIGRATION_API_URLS=urls))
                return verdicts(looks[-1].json)["workers"] == "ok"

            until(answers)
            return looks[-1]

        found = health(f"{address}/fine,{address}/fails")
        assert (found.status, found.json["passed"], found.json["error"]) == (5, False, None)
        assert verdicts(found.json) == {
            "database": "ok",
            "redis": "ok",
            "workers": "ok",
            "queues": "ok",
            "data integrity": "ok",
            "flower": "unknown",
            f"{address}/fine": "ok",
            f"{address}/fails": "failed",
        }
        assert "500" in found.err
        fine = health(f"{address}/fine")
    assert (fine.status, fine.json["passed"]) == (0, True)


@pytest.mark.long
def test_servers_that_are_down_are_named_one_by_one(migrated: Product) -> None:
    nowhere = f"redis://127.0.0.1:{closed_port()}/0"
    found = migrated.run("health", "--json", REDIS_URL=nowhere)
    wrong = {name for name, verdict in verdicts(found.json).items() if verdict == "failed"}
    assert (found.status, wrong) == (5, {"redis", "workers", "queues"})
    database = f"postgresql://u:secret@127.0.0.1:{closed_port()}/x"
    found = migrated.run("health", "--json", DATABASE_URL=database)
    assert verdicts(found.json)["database"] == "failed"
    assert verdicts(found.json)["redis"] == "ok"
    assert "secret" not in found.out + found.err


@pytest.mark.long
def test_a_query_beyond_its_limit_is_shown_with_its_plan(migrated: Product) -> None:
    quick = migrated.run("performance", "--json")
    # How fast the others are is the machine's affair.
    slow_ones = failed(quick)
    assert (quick.status, quick.json["passed"]) == ((5, False) if slow_ones else (0, True))
    assert len(quick.json["speeds"]) >= 8
    assert all(speed["repetitions"] == 20 for speed in quick.json["speeds"])
    with migrated.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO marketplace_listings (id, tool_id, title, is_public)"
                " SELECT 'one', min(id), 'One', true FROM ai_tools"
            )
        )
        connection.execute(text("ALTER TABLE marketplace_listings RENAME TO listings"))
        connection.execute(
            text(
                "CREATE VIEW marketplace_listings AS SELECT * FROM listings"
                " UNION ALL SELECT l.* FROM listings l, pg_sleep(0.2)"
            )
        )
    slow = migrated.run("performance", "--json")
    found = failed(slow)["newest listings of the marketplace"]
    assert (slow.status, slow.json["passed"]) == (5, False)
    assert found["maximum"] > found["limit"] == 0.1
    assert any("pg_sleep" in line for line in found["plan"])
    assert "pg_sleep" in slow.err
