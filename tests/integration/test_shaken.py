"""Workers and applications side by side, at random: short runs whose end must be right.

`python -m tests.soak shake` does it a thousand times, with pauses.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from models.postgres import database as databases
from models.settings import Settings, load
from producer import embedded
from tests import oracle, shaking
from tests.conftest import fresh_database

BATCH_SIZE = shaking.ROWS_A_BATCH
SEEDS = 8


@pytest.fixture(scope="module")
def school(servers: embedded.Servers) -> Iterator[str]:
    with fresh_database(servers.database_url) as address:
        yield address


@pytest.fixture(scope="module")
def before(school: str, servers: embedded.Servers) -> oracle.Snapshot:
    engine = databases.create(school)
    try:
        return shaking.build(engine, load())
    finally:
        engine.dispose()


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, SEEDS))]
)
def test_whatever_meets_at_one_row_the_end_is_right(
    servers: embedded.Servers, settings: Settings, school: str, before: oracle.Snapshot, seed: int
) -> None:
    template = school.partition("/test_")[2].partition("?")[0]
    with fresh_database(servers.database_url, template=f"test_{template}") as address:
        assert shaking.shake(address, settings, before, seed) == []
