"""Two hundred faults at once, each on another user: all are found, and not one more."""

from __future__ import annotations

from collections import Counter

import pytest
from sqlalchemy import text

from models.postgres import database as databases
from models.settings import load
from tests import variants
from tests.acceptance.conftest import Product
from tests.acceptance.victims import plant
from tests.driving import whole_run

USERS, FAULTS, SEED = 3000, 200, 7
SHAPES = (*variants.VARIANTS, variants.PLAIN, variants.PLAIN, variants.ADOPTED)


@pytest.mark.long
def test_two_hundred_planted_faults_are_found_and_no_other(product: Product) -> None:
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, USERS, seed=SEED)
    # Several pages of everything, wherever the machine is fast enough for one.
    product.environment["MIGRATION_BATCH_SIZE"] = "500"
    with product.worker():
        clean = product.run("enqueue-all", "--wait", "--json")
        assert (clean.status, clean.json["differences"]) == (3, {}), clean.err
        with product.engine.begin() as connection:
            wanted, echoes = plant(connection, FAULTS, SEED)
        verified = product.run("verify", "--wait", "--json")
        reconciled = product.run("reconcile", "--wait", "--json")
    with product.engine.connect() as connection:
        columns = "kind, entity, legacy_key, target_table, detail"
        rows = connection.execute(text(f"SELECT {columns} FROM migration.differences"))
        found = Counter(tuple(row) for row in rows)
    assert (verified.status, reconciled.status) == (4, 4)
    assert wanted - found == Counter()
    assert set(found - wanted) <= echoes


@pytest.mark.parametrize(
    ("variant", "seed"),
    [
        pytest.param(
            variant,
            seed,
            marks=() if variant in (variants.UUID, variants.ADOPTED) else pytest.mark.long,
        )
        for variant, seed in zip(SHAPES, range(11, 11 + len(SHAPES)), strict=True)
    ],
    ids=str,
)
def test_no_fault_is_invented_in_a_clean_run(
    database: str,
    servers: object,
    variant: variants.Variant,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variant.environment.items():
        monkeypatch.setenv(name, value)
    engine = databases.create(database)
    try:
        with engine.begin() as connection:
            variant.build(connection, 120, seed=seed)
        ended = whole_run(engine, load())
    finally:
        engine.dispose()
    assert ended.differences == {}
    assert (ended.exit_status, ended.verification.state) == (3, "done")
    assert ended.verification.rows_checked >= 120 == ended.reconciliation.checked
    has_more = {variant.names.subscriptions, variant.names.projects} != {"none"}
    assert (ended.verification.rows_checked > 120) == has_more
