"""A plain sample of the module's own size, and settings, for the engine in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from sqlalchemy import Engine

from models.postgres import database as databases
from models.settings import Settings, load
from producer import embedded
from tests import shapes, variants
from tests.conftest import fresh_database


@pytest.fixture
def settings(servers: object, request: pytest.FixtureRequest) -> Settings:
    """The settings of the environment; a module may set BATCH_SIZE."""
    found = load()
    batch_size = getattr(request.module, "BATCH_SIZE", found.batch_size)
    return found.model_copy(update={"batch_size": batch_size})


@pytest.fixture(scope="session")
def samples(servers: embedded.Servers) -> Iterator[Callable[[int], str]]:
    """Makes a database with the plain sample of so many users, once a session: its name."""
    made: dict[int, str] = {}
    with ExitStack() as databases_made:

        def sample(users: int) -> str:
            if users not in made:
                url = databases_made.enter_context(fresh_database(servers.database_url))
                engine = databases.create(url)
                with engine.begin() as connection:
                    variants.PLAIN.build(connection, users)
                engine.dispose()
                made[users] = str(engine.url.database)
            return made[users]

        yield sample


@pytest.fixture
def is_sampled() -> bool:
    """Asked for by the `engine` of this file: the test's database is a copy of a sample."""
    return True


@pytest.fixture
def database(
    servers: embedded.Servers, samples: Callable[[int], str], request: pytest.FixtureRequest
) -> Iterator[str]:
    """The address of a database of the test's own: empty, or where it uses `engine` a sample."""
    is_sampled = "is_sampled" in request.fixturenames
    template = samples(request.module.USERS) if is_sampled else "template1"
    with fresh_database(servers.database_url, template=template) as url:
        yield url


@pytest.fixture
def engine(database: str, is_sampled: bool) -> Iterator[Engine]:
    """A database with the plain sample of the module's USERS users."""
    engine = databases.create(database)
    yield engine
    engine.dispose()


@pytest.fixture
def today(database: str, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """The public dashboard of today, with the USERS of the test's module."""
    engine = databases.create(database)
    with engine.begin() as connection:
        shapes.TODAY.build(connection, request.module.USERS)
    yield engine
    engine.dispose()


@pytest.fixture
def mapped(settings: Settings) -> Settings:
    """The settings for it."""
    return settings.model_copy(update={"mapping": shapes.TODAY.mapping})
