"""A plain sample of the module's own size, and settings, for the engine in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from models.postgres import database as databases
from models.settings import Settings, load
from tests import variants


@pytest.fixture
def settings(servers: object, request: pytest.FixtureRequest) -> Settings:
    """The settings of the environment; a module may set BATCH_SIZE."""
    found = load()
    batch_size = getattr(request.module, "BATCH_SIZE", found.batch_size)
    return found.model_copy(update={"batch_size": batch_size})


@pytest.fixture
def engine(database: str, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """A database with the plain sample of the module's USERS users."""
    engine = databases.create(database)
    with engine.begin() as connection:
        variants.PLAIN.build(connection, request.module.USERS)
    yield engine
    engine.dispose()
