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
from producer.schema import upgrade
from tests import oracle, shapes, variants
from tests.conftest import fresh_database
from tests.driving import whole_run


class Sample(Protocol):
    """See `samples`."""

    def __call__(
        self,
        users: int,
        settings: Settings | None = None,
        shape: variants.Variant = ...,
        *,
        is_bare: bool = ...,
    ) -> str: ...


@pytest.fixture
def settings(servers: object, request: pytest.FixtureRequest) -> Settings:
    """The settings of the environment; a module may set BATCH_SIZE."""
    found = load()
    batch_size = getattr(request.module, "BATCH_SIZE", found.batch_size)
    return found.model_copy(update={"batch_size": batch_size})


@pytest.fixture(scope="session")
def samples(servers: embedded.Servers) -> Iterator[Sample]:
    """Makes a database with a sample of so many users, once a session: its name.

    The schema step is done in it, unless it is bare: that takes longer than many a test. With
    settings, a run with these has ended in it, too.
    """
    made: dict[tuple[int, str, str, bool], str] = {}
    with ExitStack() as databases_made:

        def sample(
            users: int,
            settings: Settings | None = None,
            shape: variants.Variant = variants.PLAIN,
            *,
            is_bare: bool = False,
        ) -> str:
            key = users, settings.model_dump_json() if settings else "", shape.name, is_bare
            if key not in made:
                template = "template1"
                if not is_bare:
                    template = sample(users, shape=shape, is_bare=settings is None)
                url = databases_made.enter_context(
                    fresh_database(servers.database_url, template=template)
                )
                engine = databases.create(url)
                if settings:
                    whole_run(engine, settings)
                elif is_bare:
                    with engine.begin() as connection:
                        shape.build(connection, users)
                else:
                    mapped = load().model_copy(update={"mapping": shape.mapping})
                    upgrade.upgrade(engine, mapped)
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
    """The address of a database of the test's own: empty, or with `engine` or `today` a sample."""
    template, asked = "template1", request.fixturenames
    shape = shapes.TODAY if "today" in asked else variants.PLAIN
    if "finished" in asked:
        settings = request.getfixturevalue("mapped" if "today" in asked else "settings")
        template = samples(request.module.USERS, settings, shape)
    elif "today" in asked or "is_sampled" in asked:
        template = samples(request.module.USERS, shape=shape, is_bare="bare" in asked)
    with fresh_database(servers.database_url, template=template) as url:
        yield url


@pytest.fixture
def bare() -> None:
    """Asked for by a test of what comes before the schema step: its `engine` finds none yet."""


@pytest.fixture
def engine(database: str, is_sampled: bool) -> Iterator[Engine]:
    """A database with the plain sample of the module's USERS users, ready for a run."""
    engine = databases.create(database)
    yield engine
    engine.dispose()


@pytest.fixture
def finished(database: str) -> RunReport:
    """A run with the test's settings has ended in its database before it begins: the report."""
    engine = databases.create(database)
    with engine.begin() as connection:
        # The copy of a database is another ledger.
        identity.settle(connection)
    report = status.read(engine, None)
    engine.dispose()
    return report


@pytest.fixture
def sampled(
    database: str, servers: embedded.Servers, samples: Sample, request: pytest.FixtureRequest
) -> Iterator[Engine]:
    """The sample that the test's database is a copy of, as it was before any run: to be read."""
    # The copy comes first: nobody may be connected to what is copied.
    shape = shapes.TODAY if "today" in request.fixturenames else variants.PLAIN
    name = samples(request.module.USERS, shape=shape, is_bare=True)
    engine = databases.create(servers.database_url.replace("/dashboard?", f"/{name}?"))
    yield engine
    engine.dispose()


@pytest.fixture
def before(sampled: Engine) -> oracle.Snapshot:
    """What the plain sample held before any run."""
    with sampled.connect() as connection:
        return oracle.snapshot(connection, oracle.Names())


@pytest.fixture
def today(database: str) -> Iterator[Engine]:
    """The public dashboard of today, with the USERS of the test's module."""
    engine = databases.create(database)
    yield engine
    engine.dispose()


@pytest.fixture
def mapped(settings: Settings) -> Settings:
    """The settings for it."""
    return settings.model_copy(update={"mapping": shapes.TODAY.mapping})
