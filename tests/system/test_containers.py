"""The image and docker-compose.yml by a real Docker engine, but for the servers' own images.

PostgreSQL, Redis and Prometheus are Debian's, under the names that the file has; Grafana is left
out, since no package registry holds it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import Engine as Database
from sqlalchemy import text

from deploy.make_secrets import write
from models.postgres.database import create
from models.settings import DEFAULT_GRANTS, parse_grants
from tests import oracle
from tests.integration.test_probing import closed_port
from tests.system.engine import Engine, base_image, engine
from tests.wait import until

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
IMAGE = SERVICES["producer"]["image"]
STARTED = [name for name in SERVICES if name not in ("grafana", "producer")]
# The first time, images are built, which takes minutes.
pytestmark = pytest.mark.timeout(1800)
STAND_INS = ("postgres", "redis", "prometheus")
LOAD = """
from producer import connect
from producer.demo import sample
with connect.engine().begin() as connection:
    sample.load(connection, 1_500)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as after a clone, with secrets and ports of its own."""
    folder = tmp_path_factory.mktemp("containers")
    for name in ("models", "producer", "worker", "deploy"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (
        *(".dockerignore", "Dockerfile", "docker-compose.yml"),
        *("pyproject.toml", "README.md", "celeryconfig.py"),
    ):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "tests/system/containers", folder / "stand-ins")
    write(folder / "secrets")
    ports = f'services: {{postgres: {{ports: ["127.0.0.1:{closed_port()}:5432"]}}}}\n'
    (folder / "docker-compose.override.yml").write_text(ports)
    # What the machine may use already.
    others = {name: given for name in STARTED if (given := SERVICES[name].get("ports"))}
    text_ = (folder / "docker-compose.yml").read_text()
    for given in others.values():
        text_ = text_.replace(f"    ports: {json.dumps(given)}\n", "")
    assert text_.count("ports:") == 1, "only Grafana's is left"
    (folder / "docker-compose.yml").write_text(text_)
    return folder


@pytest.fixture(scope="module")
def docker(site: Path) -> Iterator[Engine]:
    """An engine with the image and the stand-ins, built."""
    with engine(site) as found:
        base_image(found, "python:3.13-slim")
        for name in STAND_INS:
            tag = SERVICES[name]["image"]
            found.docker("build", "--network=host", f"--target={name}", f"--tag={tag}", "stand-ins")
        found.docker("build", "--network=host", f"--tag={IMAGE}", ".")
        try:
            yield found
        finally:
            for name in STARTED:
                print(found.compose("logs", "--tail=20", name, check=False))
            found.compose("down", "--volumes", "--timeout=10", check=False)


def test_the_image_is_small_has_no_server_and_runs_as_nobody_special(docker: Engine) -> None:
    found = json.loads(docker.docker("image", "inspect", IMAGE))[0]
    assert found["Config"]["User"] == "10001:10001"
    assert found["Size"] <= 250_000_000
    seen = docker.docker(
        "run", "--rm", "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", IMAGE,
        "sh", "-c", "find /opt/migration; $(find /opt/migration -name pg_dump) --version; id",
    )  # fmt: skip
    assert "pg_dump (PostgreSQL)" in seen and "uid=10001" in seen
    for unwanted in ("/bin/postgres\n", "valkey-server", "matplotlib", "site-packages/tests"):
        assert unwanted not in seen


def process_of(docker: Engine, service: str) -> int:
    """The first process of a service's container, by its number on this machine."""
    container = docker.compose("ps", "--quiet", service).strip()
    return int(docker.docker("inspect", "--format={{.State.Pid}}", container))


def children_of(process: int) -> list[int]:
    return [
        int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()
    ]


def test_a_run_in_containers_survives_kills_and_ends_right(docker: Engine, site: Path) -> None:
    docker.compose("up", "--detach", "--wait", *STARTED)
    run = ("run", "--rm", "--no-TTY", "--no-deps")
    docker.compose(*run, "--entrypoint=python", "producer", "-c", LOAD)
    port = docker.compose("port", "postgres", "5432").strip().rpartition(":")[2]
    password = (site / "secrets/postgres-password").read_text()
    database = create(f"postgresql://dashboard:{password}@127.0.0.1:{port}/dashboard")
    with database.connect() as connection:
        before = oracle.snapshot(connection, oracle.Names())
    docker.compose(*run, "--env=MIGRATION_BATCH_SIZE=20", "producer", "enqueue-all")
    until(lambda: done(database) > 5)
    # The container of one worker, and one process of another: as after the OOM killer.
    os.kill(process_of(docker, "worker-users"), signal.SIGKILL)
    (main,) = children_of(process_of(docker, "worker-projects"))
    os.kill(children_of(main)[0], signal.SIGKILL)
    until(lambda: state(database) == "completed_with_quarantine", lambda: state(database), 300)
    with database.connect() as connection:
        assert oracle.compare_now(connection, before, parse_grants(DEFAULT_GRANTS)) == []
    database.dispose()
    container = docker.compose("ps", "--quiet", "worker-users").strip()
    assert docker.docker("inspect", "--format={{.RestartCount}}", container).strip() == "1"
    docker.compose("up", "--detach", "--wait", *STARTED)
    status = json.loads(docker.compose(*run, "producer", "status", "--json", check=False))
    assert status["state"] == "completed_with_quarantine"


def done(database: Database) -> int:
    query = "SELECT count(*) FROM migration.batches WHERE state = 'done' AND step = 'users'"
    with database.connect() as connection:
        return int(connection.scalar(text(query)) or 0)


def state(database: Database) -> str:
    with database.connect() as connection:
        return str(connection.scalar(text("SELECT state FROM migration.runs")))
