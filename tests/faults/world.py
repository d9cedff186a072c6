"""The servers of the matrix: lanes, each of which plays one repetition at a time."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import text

from models.postgres import database as databases
from models.settings import DEFAULT_GRANTS, parse_grants
from producer import embedded
from producer.demo import sample
from producer.embedded import directories
from tests import oracle
from tests.nursery import Nursery

USERS = 120
GRANTS = parse_grants(DEFAULT_GRANTS)


class NotInjected(Exception):
    """The fault never happened: the repetition says nothing about the product."""


class Stopped(Exception):
    """Somebody interrupts the matrix."""


class Lane:
    """A PostgreSQL and a Valkey of its own: what one repetition kills, no other one needs."""

    def __init__(self, home: Path, nursery: Nursery) -> None:
        self.home, self.nursery = home, nursery
        self.is_stopping = threading.Event()
        self.servers = embedded.start(home)
        with self.admin() as connection:
            for name in ("site", "legacy"):
                connection.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
            connection.execute(text("CREATE DATABASE legacy"))
        engine = databases.create(self.address("legacy"))
        with engine.begin() as connection:
            sample.load(connection, USERS, subscriptions_per_user=1)
            self.before = oracle.snapshot(connection, oracle.Names())
        engine.dispose()
        self.expectation = oracle.expected(self.before, GRANTS)

    def address(self, database: str) -> str:
        return self.servers.database_url.replace("/dashboard?", f"/{database}?")

    def admin(self) -> closing[sa.Connection]:
        """A connection that makes and drops databases."""
        engine = sa.create_engine(
            self.address("postgres").replace("postgresql:", "postgresql+psycopg2:"),
            poolclass=sa.NullPool,
            isolation_level="AUTOCOMMIT",
        )
        return closing(engine.connect())

    def start(self) -> None:
        """Start whatever is down of the two servers."""
        embedded.start(self.home)

    def close(self) -> None:
        """Stop the servers and remove their data."""
        embedded.erase(self.home)

    @property
    def place(self) -> directories.Place:
        place = directories.find(self.home)
        assert place
        return place

    def valkey(self) -> int:
        """The number of the Valkey process."""
        return int((self.place.redis / "pid").read_text())

    def postmaster(self) -> int:
        """The number of PostgreSQL's first process."""
        return int((self.place.postgres / "data" / "postmaster.pid").read_text().split()[0])
