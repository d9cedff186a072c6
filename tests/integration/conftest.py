"""A plain sample of the module's own size, and settings, for the engine in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Protocol

import pytest
from sqlalchemy import Engine

from models.ledger import identity
from models.postgres import database as databases
from models.reports.run import RunReport
from models.settings import Settings, load
from producer import embedded
from producer.reports import status
from tests import shapes, variants
from tests.conftest import fresh_database
from tests.driving import whole_run


class Sample(Protocol):
    """See `samples`."""

    def __call__(self, users: int, settings: Settings | None = None) -> str: ...


@pytest.fixture
def settings(servers: object, request: pytest.FixtureRequest) -> Settings:
    """The settings of the environment; a module may set BATCH_SIZE."""
    found = load()
    batch_size = getattr(request.module, "BATCH_SIZE", found.batch_size)
    return found.model_copy(update={"batch_size": batch_size})


@pytest.fixture(scope="session")
def samples(servers: embedded.Servers) -> Iterator[Sample]:
    """Makes a database with the plain sample of so many users, once a session: its name.

    With settings, a run with these has ended in it: two seconds of work for each test otherwise.
    """
    made: dict[tuple[int, str], str] = {}
    with ExitStack() as databases_made:

        def sample(users: int, settings: Settings | None = None) -> str:
            key = users, settings.model_dump_json() if settings else ""
            if key not in made:
                template = sample(users) if settings else "template1"
                url = databases_made.enter_context(
                    fresh_database(servers.database_url, template=template)
                )
                engine = databases.create(url)
                if settings:
                    whole_run(engine, settings)
                else:
                    with engine.begin() as connection:
                        variants.PLAIN.build(connection, users)
                engine.dispose()
                made[key] = str(engine.url.database)
            return made[key]

        yield sample


@pytest.fixture
def is_sampled() -> bool:
    """Asked for by the `engine` of this file: the test's database is a copy of a sample."""
    return True


@pytest.fixture
def database(
    servers: embedded.Servers, samples: Sample, request: pytest.FixtureRequest
) -> Iterator[str]:
    """The address of a database of the test's own: empty, or where it uses `engine` a sample."""
    template = "template1"
    if "finished" in request.fixturenames:
        template = samples(request.module.USERS, request.getfixturevalue("settings"))
    elif "is_sampled" in request.fixturenames:
        template = samples(request.module.USERS)
    with fresh_database(servers.database_url, template=template) as url:
        yield url


@pytest.fixture
def engine(database: str, is_sampled: bool) -> Iterator[Engine]:
    """A database with the plain sample of the module's USERS users."""
    engine = databases.create(database)
    yield engine
    engine.dispose()


@pytest.fixture
def finished(engine: Engine) -> RunReport:
    """A run with the test's settings has ended in its database before it begins: the report."""
    with engine.begin() as connection:
        # The copy of a database is another ledger.
        identity.settle(connection)
    return status.read(engine, None)


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
