"""Servers that go away while a command waits: cut off, lost with their newest rows, silent."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from sqlalchemy import text

from producer.demo import sample
from tests.acceptance.conftest import Process, Product, said
from tests.proxy import Proxy, proxy
from tests.wait import until

FOUND = yaml.safe_load((Path(__file__).parents[2] / "docker-compose.yml").read_text())


@pytest.fixture
def between(product: Product) -> Iterator[Proxy]:
    """A proxy through which commands reach the database."""
    url = urlsplit(product.environment["DATABASE_URL"])
    folder = parse_qs(url.query)["host"][0]
    with proxy(Path(folder) / ".s.PGSQL.5432") as made:
        yield made


def through(product: Product, between: Proxy) -> str:
    path = urlsplit(product.environment["DATABASE_URL"]).path
    return f"postgresql://postgres@127.0.0.1:{between.port}{path}"


@pytest.fixture
def opened(product: Product, between: Proxy) -> Iterator[tuple[Process, Path | None]]:
    """A waiting command whose database goes away as soon as it has said which run it opened."""
    with product.engine.begin() as connection:
        sample.load(connection, 100)
    waiting = product.start(
        "enqueue-all", "--wait", "--json", DATABASE_URL=through(product, between)
    )
    said(waiting, "Run ")
    target, between.target = between.target, None
    between.cut()
    said(waiting, "waiting for it")
    yield waiting, target
    waiting.kill()


@pytest.mark.long
def test_a_command_waits_for_the_database_from_the_moment_it_has_opened_its_run(
    product: Product, between: Proxy, opened: tuple[Process, Path | None]
) -> None:
    waiting, between.target = opened
    with product.worker():
        out, err = waiting.communicate(timeout=120)
    assert waiting.returncode == 3, err
    assert '"state": "completed_with_quarantine"' in out
    assert err.count("It answers again") == 1


def test_a_run_that_a_failover_lost_is_said_to_be_lost_with_it(
    product: Product, between: Proxy, opened: tuple[Process, Path | None]
) -> None:
    waiting, target = opened
    with product.engine.begin() as connection:
        connection.execute(text("DROP SCHEMA migration CASCADE"))
    between.target = target
    out, err = waiting.communicate(timeout=120)
    assert waiting.returncode == 1, err
    assert '"kind": "run_lost"' in out
    assert "producer enqueue-all --wait" in err


def test_a_worker_shows_life_to_its_probe_while_no_server_answers(
    product: Product, between: Proxy, tmp_path: Path
) -> None:
    alive = tmp_path / "home" / f"worker.alive.{socket.gethostname()}"
    url = urlsplit(product.environment["REDIS_URL"])
    database = through(product, between)
    with proxy(Path(url.path)) as broker:
        redis_url = f"redis://127.0.0.1:{broker.port}/{parse_qs(url.query)['db'][0]}"
        with product.worker(DATABASE_URL=database, REDIS_URL=redis_url):
            until(alive.exists)
            broker.target = between.target = None
            broker.cut()
            between.cut()
            log = tmp_path / "celery-0.log"
            until(lambda: "Cannot connect" in log.read_text())
            alive.unlink()
            until(alive.exists)
            probe = FOUND["services"]["worker-users"]["healthcheck"]["test"][1].replace("$$", "$")
            home = {"MIGRATION_HOME": str(alive.parent)}
            assert subprocess.run(["sh", "-c", probe], env=os.environ | home).returncode == 0
            # A worker on another host shares the folder.
            alive.rename(alive.with_name("worker.alive.another"))
            assert subprocess.run(["sh", "-c", probe], env=os.environ | home).returncode != 0
