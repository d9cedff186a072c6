"""The product as a careful site runs it: TLS to both servers, a role each, a Redis user's rules."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg2
from psycopg2 import sql

from models.postgres import database as databases
from producer.demo import sample
from producer.embedded.programs import postgres_bin_dir
from tests.acceptance.conftest import Product
from tests.system import servers
from tests.system.servers import Server, database_address, redis_address

OWNER, PRODUCER, WORKER = "dashboard", "migration_producer", "migration_worker"
ROLES = servers.RULES.with_name("roles.sql")
DATA_QUEUES = "migration.users,migration.projects,migration.verify,migration.credits"


@dataclass(frozen=True)
class Servers:
    """Both servers, and the folder of the socket at which PostgreSQL's superuser is let in."""

    postgres: Server
    redis: Server
    sockets: Path

    def superuser(self, database: str = "postgres") -> str:
        """The address by which the tests look on."""
        return f"postgresql://postgres@/{database}?host={self.sockets}&port={self.postgres.port}"

    def execute(self, statement: str, *names: str, database: str = "postgres") -> None:
        """Run one statement as the superuser."""
        with closing(psycopg2.connect(self.superuser(database))) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


@dataclass(frozen=True)
class Site:
    """A school in a database of the test's own, whose tables OWNER owns."""

    servers: Servers
    database: str
    product: Product
    as_worker: dict[str, str]
    """What a worker's environment has other than the producer's."""

    def grant(self) -> None:
        """Run deploy/roles.sql as the superuser, as docs/security.md says."""
        ended = subprocess.run(
            [
                postgres_bin_dir() / "psql", "--no-psqlrc", f"--host={self.servers.sockets}",
                f"--port={self.servers.postgres.port}", "--username=postgres",
                f"--set=owner={OWNER}", f"--file={ROLES}", self.database,
            ],
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr

    def prepare(self) -> None:
        """The steps before a run: the roles, the schema, and the rights on what that added."""
        self.grant()
        for role in (PRODUCER, WORKER):
            self.servers.execute(f"ALTER ROLE {{}} PASSWORD '{servers.PASSWORD}'", role)
        upgraded = self.product.run("schema", "upgrade", "--json")
        assert upgraded.status == 0, upgraded.err
        self.grant()

    @contextmanager
    def workers(self) -> Iterator[None]:
        """A worker of each kind."""
        control = ("-Q", "migration.control", "-n", "control@%h")
        data = ("-Q", DATA_QUEUES, "-n", "data@%h")
        with self.product.worker(*control), self.product.worker(*data, **self.as_worker):
            yield


@contextmanager
def site(both: Servers, folder: Path, users: int) -> Iterator[Site]:
    """A site with a generated school, before its first step."""
    name = f"test_{uuid.uuid4().hex}"
    both.execute("CREATE DATABASE {}", name)
    engine = databases.create(both.superuser(name))
    try:
        with engine.begin() as connection:
            sample.load(connection, users)
            for table in ("users", "gpt_subscriptions", "projects"):
                connection.exec_driver_sql(f"ALTER TABLE {table} OWNER TO {OWNER}")
        ca = both.postgres.certificates.ca
        environment = dict(os.environ) | {
            "DATABASE_URL": database_address(both.postgres, PRODUCER, name, ca),
            "REDIS_URL": redis_address(both.redis, ca),
            "MIGRATION_HOME": str(folder / "home"),
        }
        as_worker = {"DATABASE_URL": database_address(both.postgres, WORKER, name, ca)}
        yield Site(both, name, Product(environment, folder, engine), as_worker)
    finally:
        engine.dispose()
        both.execute("DROP DATABASE {} WITH (FORCE)", name)
