"""Hours in which batches may begin: outside of them workers wait, and say until when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from producer.demo import sample
from tests.acceptance.conftest import Product, count
from tests.wait import until

STARTED = "SELECT count(*) FROM migration.batches WHERE started_at IS NOT NULL"


def hours(first: int, last: int) -> str:
    """A window from so many hours from now to so many, in UTC."""
    now = datetime.now(UTC)
    return "-".join(f"{now + timedelta(hours=each):%H:%M}" for each in (first, last))


def test_no_batch_begins_outside_the_window_and_a_rollback_does_not_wait(product: Product) -> None:
    with product.engine.begin() as connection:
        sample.load(connection, 100)
    product.environment["MIGRATION_WINDOW"] = hours(3, 6)
    product.run("enqueue-all")
    with product.worker():
        until(lambda: product.run("status", "--json").json["throttled"])
        said = product.run("status", "--json").json["throttled_by"]
        assert "MIGRATION_WINDOW" in said and "begins at" in said
        assert count(product, STARTED) == 0
    with product.worker(MIGRATION_WINDOW=hours(-3, 6)):
        ended = product.run("status", "--watch", "--json")
    assert ended.json["state"] == "completed_with_quarantine"
    with product.worker():
        assert product.run("rollback", "--wait", "--yes").status == 0


def test_a_window_that_cannot_be_is_refused_by_name(product: Product) -> None:
    refused = product.run("status", "--json", MIGRATION_WINDOW="from ten to six")
    assert refused.status == 2
    assert "MIGRATION_WINDOW" in refused.json["error"]["message"]
