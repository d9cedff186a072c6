"""The contestants of the benchmark write the same rows as the product: else it compares nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Engine

from bench import contestants, guide, script
from models.postgres import database as databases
from models.settings import load
from producer import embedded
from producer.demo import sample
from tests.conftest import fresh_database
from tests.driving import whole_run

USERS = 150


@pytest.mark.long
def test_every_contestant_writes_what_the_product_writes(servers: embedded.Servers) -> None:
    def product(engine: Engine) -> None:
        assert whole_run(engine, load()).state == "completed"

    ways: list[Callable[[Engine], None]] = [
        product,
        script.run_single,
        script.run_limit,
        guide.run,
    ]
    written = [_written(servers, way) for way in ways]
    assert written[0]["ai_suites"] == str(USERS)
    assert all(found == written[0] for found in written)


def _written(servers: embedded.Servers, way: Callable[[Engine], None]) -> dict[str, object]:
    with fresh_database(servers.database_url) as url:
        engine = databases.create(url)
        try:
            with engine.begin() as connection:
                sample.load(connection, USERS, dirty=False)
            way(engine)
            return contestants.written(engine)
        finally:
            engine.dispose()
