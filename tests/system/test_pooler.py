"""PgBouncer in transaction mode stands between the product and its database."""

from __future__ import annotations

import json

from models.settings import DEFAULT_GRANTS, parse_grants
from producer.demo import sample
from tests import oracle
from tests.acceptance.conftest import Product, batches, kill_group
from tests.system.conftest import POOL_SIZE, Pooler
from tests.wait import until

SMALL = {"MIGRATION_BATCH_SIZE": "50"}


def test_a_run_through_a_pooler_ends_right_also_when_a_worker_is_killed(
    product: Product, pooler: Pooler
) -> None:
    with product.engine.begin() as connection:
        sample.load(connection, 2_000)
    with product.engine.connect() as connection:
        before = oracle.snapshot(connection, oracle.Names())
    direct = product.environment["DATABASE_URL"]
    product.environment["DATABASE_URL"] = pooler.address(direct)
    # Three workers of two processes, and the command: more sessions than the pool has.
    with product.worker() as victim, product.worker(), product.worker():
        run = product.start("enqueue-all", "--wait", "--json", **SMALL)
        until(lambda: batches(product, "done") > 10)
        kill_group(victim)
        seen = pooler.servers()
        out, _ = run.communicate(timeout=150)
        again = product.run("verify", "--wait", "--json").json
    assert (run.returncode, json.loads(out)["state"]) == (3, "completed_with_quarantine")
    assert 0 < len([one for one in seen if one[1] in direct]) <= POOL_SIZE
    with product.engine.connect() as connection:
        assert oracle.compare_now(connection, before, parse_grants(DEFAULT_GRANTS)) == []
    assert (again["state"], again["verification"]["differences"]) == (json.loads(out)["state"], 0)
    assert product.run("doctor", "--json").status == 0
    assert product.run("plan", "--json").json["error"] is None
