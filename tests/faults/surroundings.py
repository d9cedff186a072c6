"""Surroundings that a run does not choose: session defaults, a shared Redis, search paths."""

from __future__ import annotations

import copy

from sqlalchemy import text

from models.postgres import database as databases
from tests import oracle
from tests.faults.site import Site
from tests.faults.world import GRANTS

# The cutover commits with its batch: what is written from there on belongs to the next run.
_IS_CUT_OVER = "SELECT count(*) FROM migration.batches WHERE step = 'settle' AND state = 'done'"
_USERS = "SELECT id FROM users WHERE email LIKE '%@%' ORDER BY id"
_OTHER_SCHEMA = """
CREATE SCHEMA old;
CREATE TABLE old.users (LIKE users INCLUDING ALL);
CREATE TABLE old.gpt_subscriptions (LIKE gpt_subscriptions INCLUDING ALL);
CREATE TABLE old.projects (LIKE projects INCLUDING ALL);
INSERT INTO old.users SELECT * FROM users;
INSERT INTO old.gpt_subscriptions SELECT * FROM gpt_subscriptions;
INSERT INTO old.projects SELECT * FROM projects;
UPDATE old.users SET email = 'old-' || email
"""


def repeatable_read(site: Site) -> None:
    """The database's default isolation is repeatable read; the application writes all run long."""
    site.change("ALTER DATABASE site SET default_transaction_isolation = 'repeatable read'")
    site.engine.dispose()
    site.work()
    site.enqueue()
    written: dict[str, str] = {}
    users = _keys(site)

    def write() -> bool:
        key = users[len(written) % len(users)]
        email = f"{len(written)}-{key}@written.example"
        with site.engine.connect() as connection, connection.begin() as transaction:
            connection.execute(text("SET TRANSACTION ISOLATION LEVEL READ COMMITTED"))
            values = {"key": key, "email": email}
            connection.execute(text("UPDATE users SET email = :email WHERE id = :key"), values)
            if connection.scalar(text(_IS_CUT_OVER)):
                transaction.rollback()
                return site.is_over()
        written[key] = email
        return False

    site.until(write, "the end of the run", 90)
    before = copy.deepcopy(site.before)
    for row in before.rows("users"):
        row["email"] = written.get(str(row["id"]), row["email"])
    site.before, site.expectation = before, oracle.expected(before, GRANTS)


def _keys(site: Site) -> list[str]:
    with site.engine.begin() as connection:
        return list(connection.scalars(text(_USERS)))


def shared_redis(site: Site) -> None:
    """Another environment, with a database, a worker and a run of its own, uses the same Redis."""
    with site.lane.admin() as connection:
        connection.execute(text("DROP DATABASE IF EXISTS other WITH (FORCE)"))
        connection.execute(text("CREATE DATABASE other TEMPLATE legacy"))
    address = site.lane.address("other")
    site.work(DATABASE_URL=address)
    site.work()
    site.enqueue(DATABASE_URL=address)
    site.enqueue()
    engine = databases.create(address, application="harness")

    def wrong() -> list[str]:
        with engine.connect() as connection:
            return oracle.compare(connection, site.before, site.expectation)

    def is_over() -> bool:
        with engine.begin() as connection:
            return bool(
                connection.scalar(text("SELECT count(*) FROM migration.runs WHERE state ~ 'comp'"))
            )

    site.until(is_over, "the end of the other run", 90)
    found = wrong()
    engine.dispose()
    site.must("the other environment's rows are right", lambda: not found)


def other_search_path(site: Site) -> None:
    """One of two workers sees tables of the same names in another schema."""
    site.change(_OTHER_SCHEMA)
    site.work(DATABASE_URL=f"{site.lane.address('site')}&options=-csearch_path%3Dold%2Cpublic")
    site.work()
    site.enqueue()
    nothing_there = "SELECT to_regclass('old.ai_suites') IS NULL"
    site.must("the other schema is left alone", lambda: site.scalar(nothing_there))
