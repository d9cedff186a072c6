"""The public dashboard's own shapes go the whole way, and end as the naive oracle says."""

from __future__ import annotations

import re
import shlex
from decimal import Decimal

import pytest

from models.settings import DEFAULT_GRANTS, parse_grants
from tests import oracle, shapes, variants
from tests.acceptance.conftest import Product
from tests.short import short

GRANTS: dict[str, Decimal] = parse_grants(DEFAULT_GRANTS)


@pytest.mark.parametrize("shape", short(shapes.EACH, shapes.CORE), ids=str)
def test_a_shape_ends_as_the_oracle_says(product: Product, shape: variants.Variant) -> None:
    with product.engine.begin() as connection:
        shape.build(connection, 300)
        before = oracle.snapshot(connection, shape.names)
    product.environment |= shape.environment
    upgraded = product.run("schema", "upgrade")
    assert upgraded.status == 0, upgraded.err
    with product.worker():
        ended = product.run("enqueue-all", "--wait", "--json")
    with product.engine.connect() as connection:
        differences = oracle.compare(connection, before, oracle.expected(before, GRANTS))
    assert ended.status == 3, ended.err
    assert differences == []
    assert ended.json["verification"]["differences"] == 0, ended.json["differences"]
    assert ended.json["reconciliation"]["discrepancies"] == 0


def test_a_mistake_in_the_mapping_ends_every_command_at_once(product: Product) -> None:
    path = product.folder / "here.toml"
    path.write_text("[tables]\nuser = 'u'\n")
    for command in (["check"], ["status"], ["schema", "show"]):
        ended = product.run(*command, "--json", MIGRATION_MAPPING=str(path))
        error = ended.json["error"]
        assert (ended.status, error["kind"]) == (2, "misconfigured")
        assert "here.toml, line 2, tables.user: is not known here" in error["message"]


@pytest.mark.long
@pytest.mark.parametrize("shape", shapes.EACH, ids=str)
def test_the_demonstration_shows_a_shape(product: Product, shape: variants.Variant) -> None:
    ended = product.run("demo", "--users", "200", "--shape", shape.name, "--json")
    assert (ended.status, ended.json["state"]) == (0, "completed_with_quarantine"), ended.err
    assert ended.json["verification"]["differences"] == 0
    # Its workers were on their way, and what is left can be looked at.
    assert "No worker is running" not in ended.err
    (given,) = re.findall(r"export (MIGRATION_HOME=\S+ MIGRATION_MAPPING=\S+)", ended.err)
    left = dict(pair.split("=", 1) for pair in shlex.split(given))
    again = product.run("status", DATABASE_URL="", REDIS_URL="", **left)
    product.run("servers", "stop", DATABASE_URL="", REDIS_URL="", **left)
    assert again.status == 3, again.err
