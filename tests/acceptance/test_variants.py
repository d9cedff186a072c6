"""Every shape of a legacy database ends as the naive oracle says, row for row."""

from __future__ import annotations

from decimal import Decimal

import pytest

from models.settings import DEFAULT_GRANTS, parse_grants
from tests import oracle, variants
from tests.acceptance.conftest import Product
from tests.short import short

GRANTS: dict[str, Decimal] = parse_grants(DEFAULT_GRANTS)


@pytest.mark.long
@pytest.mark.parametrize("variant", variants.VARIANTS, ids=str)
def test_a_variant_ends_as_the_oracle_says(product: Product, variant: variants.Variant) -> None:
    migrate_and_compare(product, variant)


@pytest.mark.parametrize("variant", short([variants.PLAIN, variants.TEXT], variants.PLAIN), ids=str)
def test_the_oldest_postgresql_gives_the_same(
    old_product: Product, variant: variants.Variant
) -> None:
    migrate_and_compare(old_product, variant)


def migrate_and_compare(product: Product, variant: variants.Variant) -> None:
    with product.engine.begin() as connection:
        variant.build(connection, 300)
        before = oracle.snapshot(connection, variant.names)
    product.environment |= variant.environment
    expectation = oracle.expected(before, GRANTS)
    with product.worker():
        ended = product.run("enqueue-all", "--wait", "--json")
    with product.engine.connect() as connection:
        differences = oracle.compare(connection, before, expectation)
    assert differences == []
    assert ended.json["verification"]["differences"] == 0, ended.json["differences"]
    assert ended.json["reconciliation"]["discrepancies"] == 0
    assert ended.status == 3, ended.err
