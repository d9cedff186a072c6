"""Each shape of a dashboard goes the whole way: with damage, kills and live writes, and back."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

import pytest
import redis
from sqlalchemy import text

from models.settings import DEFAULT_GRANTS, parse_grants
from producer.backup import clients
from tests import oracle, shapes, variants
from tests.acceptance.conftest import COMMAND_SECONDS, Product, batches, count, kill_group
from tests.application import Application, Traffic
from tests.wait import until

GRANTS = parse_grants(DEFAULT_GRANTS)
USERS = 120
WRITES_A_SECOND = 200.0
SEED = int(os.environ.get("WHOLE_WAY_SEED", "1"))
VERIFYING = (
    "SELECT count(*) FROM migration.stages WHERE name = 'verification' AND state <> 'pending'"
)
SHAPES = (
    *(variants.PLAIN, variants.REVISED, variants.ADOPTED, variants.USERS_ONLY, variants.DUMP),
    *(variants.NO_PROJECTS, variants.NO_SUBSCRIPTIONS, *shapes.EACH),
)
# A repair each, the damage that it is for, and by whom the damage is found.
DAMAGE = {
    # Where the application's own column can be null.
    "missing-data": "UPDATE {users} SET billing_tier = NULL WHERE id = {one} AND NOT (SELECT"
    " attnotnull FROM pg_attribute WHERE attrelid = to_regclass('{users}')"
    " AND attname = 'billing_tier')",
    "credits": "UPDATE {users} SET credits_balance = credits_balance + 7 WHERE id = {one}",
    "tools": "DELETE FROM tool_assignments WHERE tool_id = (SELECT min(id) FROM ai_tools"
    " WHERE tool_type = 'gpt')",
}


def schema(product: Product, number: int) -> str:
    """`pg_dump --schema-only`, less the random word that newer versions put around it."""
    with product.engine.connect() as connection:
        version = int(connection.scalar(text("SHOW server_version_num")) or 0)
    path = product.folder / f"schema-{number}.sql"
    url = product.environment["DATABASE_URL"]
    clients.find(version).run("pg_dump", "--schema-only", f"--file={path}", url=url)
    lines = path.read_text().splitlines()
    return "\n".join(line for line in lines if "restrict" not in line)


def hashes(product: Product, names: oracle.Names) -> dict[str, str]:
    tables = [names.users, names.subscriptions, names.projects]
    tables += [names.targets.get(name, name) for name in oracle.TARGETS]
    with product.engine.connect() as connection:
        there = [t for t in tables if connection.scalar(text("SELECT to_regclass(:t)"), {"t": t})]
        query = "SELECT md5(string_agg(t::text, '|' ORDER BY t::text)) FROM {} t"
        return {name: str(connection.scalar(text(query.format(name)))) for name in there}


def judged(
    product: Product, before: oracle.Snapshot, history: oracle.History | None = None
) -> list[str]:
    with product.engine.connect() as connection:
        if history:
            return oracle.compare_now(connection, before, GRANTS, history)
        return oracle.compare(connection, before, oracle.expected(before, GRANTS))


def read(product: Product, names: oracle.Names) -> dict[str, Any]:
    with product.engine.connect() as connection:
        return asdict(oracle.snapshot(connection, names))


def run(product: Product, *command: str, ends: tuple[int, ...] = (0, 3)) -> dict[str, Any]:
    ended = product.run(*command, "--json")
    said = ended.json
    assert ended.status in ends, (
        *(command, ended.status, ended.err[-2000:]),
        {key: said.get(key) for key in ("error", "differences", "conflicts")},
    )
    return ended.json


@pytest.mark.long
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_whole_way(product: Product, shape: variants.Variant) -> None:
    names = shape.names
    with product.engine.begin() as connection:
        shape.build(connection, USERS)
        before = oracle.snapshot(connection, names)
    first_schema = schema(product, 0)
    product.environment |= shape.environment | {"MIGRATION_BATCH_SIZE": "10"}
    run(product, "check")
    obstacles = run(product, "schema", "show", ends=(0,))["obstacles"]
    assert not any(each["is_fatal"] for each in obstacles)
    run(product, "schema", "upgrade", ends=(0,))
    run(product, "plan", ends=(0,))
    migrate_through_a_kill(product)
    assert judged(product, before) == []
    with product.worker():
        assert_that_nothing_changes(product, names)
        repair_damage(product, names)
        assert judged(product, before) == []
        go_back(product)
    assert (schema(product, 1), read(product, names)) == (first_schema, asdict(before))
    with product.worker():
        assert judged(product, before, migrate_while_it_writes(product, names)) == []
        # What the application chose since stays.
        go_back(product, ends=(0, 3))
    assert schema(product, 2) == first_schema


def migrate_through_a_kill(product: Product) -> None:
    """A worker gets a SIGKILL in the middle, and Redis loses all it has."""
    waiting = product.start("enqueue-all", "--wait", "--json")
    with product.worker() as first:
        until(lambda: batches(product, "done") >= 8)
        kill_group(first)
    with redis.Redis.from_url(product.environment["REDIS_URL"]) as client:
        client.flushdb()
    with product.worker():
        _, err = waiting.communicate(timeout=COMMAND_SECONDS)
    assert waiting.returncode in (0, 3), err


def assert_that_nothing_changes(product: Product, names: oracle.Names) -> None:
    """One more run, both checks and the reports write no row."""
    written = hashes(product, names)
    again = run(product, "enqueue-all", "--wait")
    assert set(again["rows"].values()) == {0}
    run(product, "verify", "--wait")
    run(product, "reconcile", "--wait")
    status = run(product, "status")
    for plural in ("users", "subscriptions", "projects"):
        found = status[plural]
        assert found["total"] == found["migrated"] + found["quarantined"]
        assert bool(found["total"]) == (getattr(names, plural) != "none")
    report = product.folder / "report.html"
    run(product, "report", "--output", str(report))
    assert report.stat().st_size
    run(product, "quarantine")
    run(product, "performance", ends=(0, 5))
    assert hashes(product, names) == written


def repair_damage(product: Product, names: oracle.Names) -> None:
    """Each damage is found by a check, and its repair brings back what was there."""
    written = hashes(product, names)
    for fix, statement in DAMAGE.items():
        with product.engine.begin() as connection:
            one = f"(SELECT id FROM {names.users} WHERE credits_balance > 0 ORDER BY id LIMIT 1)"
            done = connection.exec_driver_sql(statement.format(users=names.users, one=one))
        if not done.rowcount:
            continue
        check = "reconcile" if fix == "credits" else "verify"
        run(product, check, "--wait", ends=(4,))
        # Without it, more credits than the log has are left to the operator.
        forced = ("--force",) if fix == "credits" else ()
        run(product, "repair", fix, *forced, ends=(0,))
        run(product, check, "--wait")
    now = hashes(product, names)
    # An assignment has another moment.
    assert {name for name in now if now[name] != written[name]} <= {"tool_assignments"}


def go_back(product: Product, ends: tuple[int, ...] = (0,)) -> None:
    run(product, "rollback", "--wait", "--yes", ends=ends)
    run(product, "schema", "downgrade", "--yes", ends=(0,))


def migrate_while_it_writes(product: Product, names: oracle.Names) -> oracle.History:
    """What is written after the last lock comes with the next run."""
    traffic = Traffic(Application(product.engine, seed=SEED, names=names), WRITES_A_SECOND)
    waiting = product.start("enqueue-all", "--wait", "--json")
    traffic.start()
    until(lambda: count(product, VERIFYING) or waiting.poll() is not None)
    # Of a user deleted alone after the last lock, the projects keep what they point at.
    traffic.application.spare("delete_user_alone")
    _, err = waiting.communicate(timeout=COMMAND_SECONDS)
    traffic.stop()
    assert waiting.returncode in (0, 3), err
    run(product, "enqueue-all", "--wait")
    assert sum(traffic.application.done.values())
    assert traffic.application.refused == []
    return traffic.application.history
