"""A host that vanishes: its packets are dropped, and nothing says that the connection is over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from producer.demo import sample
from tests.acceptance.conftest import Product, count
from tests.far_host import PORT, FarHost, NoNamespace, far_host
from tests.wait import until


@pytest.fixture
def host(product: Product) -> Iterator[FarHost]:
    """A host in a network namespace of its own, that serves the database."""
    folder = parse_qs(urlsplit(product.environment["DATABASE_URL"]).query)["host"][0]
    try:
        with far_host(Path(folder) / f".s.PGSQL.{PORT}") as made:
            yield made
    except NoNamespace as reason:
        pytest.skip(str(reason))


@pytest.mark.timeout(420)
def test_a_run_goes_on_over_another_host_when_the_first_vanishes(
    product: Product, host: FarHost
) -> None:
    with product.engine.begin() as connection:
        sample.load(connection, 2_000)
    url = urlsplit(product.environment["DATABASE_URL"])
    socket = parse_qs(url.query)["host"][0]
    hosts = f"host={host.address},{socket}&port={PORT},{PORT}"
    both = f"postgresql://{url.netloc}{url.path}?{hosts}"
    product.environment |= {"DATABASE_URL": both, "MIGRATION_BATCH_SIZE": "20"}
    waiting = product.start("enqueue-all", "--wait", "--json")
    with product.worker():
        done = "SELECT count(*) FROM migration.batches WHERE state = 'done'"
        until(lambda: count(product, "SELECT count(to_regclass('migration.batches'))"))
        until(lambda: count(product, done) > 5)
        host.vanish()
        out, err = waiting.communicate(timeout=300)
    assert waiting.returncode == 3, err
    assert '"state": "completed_with_quarantine"' in out
