"""Hours in which batches may begin: outside of them workers wait, and say until when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from producer.demo import sample
from tests.acceptance.conftest import Product, count
from tests.wait import until

STARTED = "SELECT count(*) FROM migration.batches WHERE started_at IS NOT NULL"


def hours(first: int, last: int) -> str:
    """A window from so many hours from now to so many, in UTC."""
    now = datetime.now(UTC)
    return "-".join(f"{now + timedelta(hours=each):%H:%M}" for each in (first, last))


def status(product: Product) -> dict[str, Any]:
    return product.run("status", "--json").json


@pytest.mark.long
def test_no_batch_begins_outside_the_window_and_a_rollback_does_not_wait(product: Product) -> None:
    with product.engine.begin() as connection:
        sample.load(connection, 100)
    product.environment["MIGRATION_WINDOW"] = hours(3, 6)
    product.run("enqueue-all")
    # Its one process holds a message of the run that is cancelled when the rollback needs it.
    with product.worker("--concurrency=1"):
        until(lambda: status(product)["throttled"])
        said = status(product)["throttled_by"]
        assert "MIGRATION_WINDOW" in said and "begins at" in said
        assert count(product, STARTED) == 0
        # The same workers go on, without a restart, and with the batches that they are told.
        assert product.run("tune", "--window", "noon").status == 2
        tuned = product.run("tune", "--window", "always", "--batch-size", "7", "--json")
        assert (tuned.json["window"], tuned.json["batch_size"]) == ("", "7")
        ended = product.run("status", "--watch", "--json")
        assert ended.json["state"] == "completed_with_quarantine"
        assert count(product, "SELECT max(rows) FROM migration.batches WHERE stage = 'users'") <= 7
        (noted,) = (
            row
            for row in product.run("status", "--history", "--json").json["actions"]
            if row["action"] == "tune"
        )
        assert noted["before"] == {"hours": None, "batch_size": "auto"}
        assert noted["after"] == {"hours": "", "batch_size": "7"}
        refused = product.run("tune", "--batch-size", "9", "--json")
        assert refused.status != 0 and "only an open run" in refused.json["error"]["message"]
        product.run("enqueue-all")
        product.run("tune", "--window", hours(3, 6))
        until(lambda: "The window of the run" in str(status(product)["throttled_by"]))
        product.run("tune", "--window", "default")
        until(lambda: "MIGRATION_WINDOW" in str(status(product)["throttled_by"]))
        product.run("cancel", "--yes")
        # It waits for no window, neither the run's nor its own.
        assert product.run("rollback", "--wait", "--yes").status == 0


def test_a_window_that_cannot_be_is_refused_by_name(product: Product) -> None:
    refused = product.run("status", "--json", MIGRATION_WINDOW="from ten to six")
    assert refused.status == 2
    assert "MIGRATION_WINDOW" in refused.json["error"]["message"]
