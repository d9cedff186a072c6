"""docker-compose.yml without Docker: its own commands, environments and health checks as processes.

Addresses are of this machine instead of the containers network, ports are free ones, PostgreSQL is
the session's; all else is as it stands in the file, and a run goes through it to its end.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from deploy.make_secrets import write
from producer.demo import sample
from tests.acceptance.conftest import Product, kill_group
from tests.integration.test_probing import closed_port
from tests.system import packages
from tests.wait import until

ROOT = Path(__file__).parents[2]
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
PORTS = re.compile(r"\b(6379|5555|8484|9464|9090)\b")
# Their check is that of worker-users.
ANOTHERS = ("worker-projects", "worker-verify", "worker-credits", "worker-control")
PROGRAMS = {"redis-server": "redis-server", "redis-cli": "redis-server", "wget": "wget"}
# Not to be had as a package, or started here otherwise.
ELSEWHERE = {"postgres", "grafana", "producer"}


class Machine:
    """One machine that plays all containers."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self.folder = folder
        self._ports: dict[str, str] = {}
        write(folder / "secrets")
        self._put("database-url", database_url)
        self._put("redis-url", self.here((folder / "secrets/redis-url").read_text()))
        (folder / "data").mkdir()
        shutil.copytree(ROOT / "deploy/prometheus", folder / "prometheus")
        settings = folder / "prometheus/prometheus.yml"
        settings.write_text(self.here(settings.read_text()))
        (folder / "bin").mkdir()
        for name, package in PROGRAMS.items():
            # With the libraries that came with it.
            script = folder / "bin" / name
            command = shlex.join(packages.command(name, package))
            script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
            script.chmod(0o755)

    def _put(self, name: str, value: str) -> None:
        (self.folder / "secrets" / name).unlink()
        (self.folder / "secrets" / name).write_text(value)

    def port(self, inside: str) -> str:
        return self._ports.setdefault(inside, str(closed_port()))

    def here(self, text: str) -> str:
        """What stands in the file, for this machine: paths, names and ports."""
        text = PORTS.sub(lambda found: self.port(found[0]), text)
        text = re.sub(r"\b(redis|metrics)(?=:\d)", "127.0.0.1", text)
        text = text.replace("/run/secrets/", f"{self.folder}/secrets/")
        text = text.replace("/etc/prometheus/", f"{self.folder}/prometheus/")
        for option, path in (("--dir ", "/data"), ("tsdb.path=", "/prometheus")):
            text = text.replace(option + path, f"{option}{self.folder}/data")
        # Compose's own way to write one dollar.
        return text.replace("$$", "$")

    def environment(self, name: str) -> dict[str, str]:
        given = SERVICES[name].get("environment", {})
        folders = [str(self.folder / "bin"), str(Path(sys.executable).parent)]
        kept = {key: value for key, value in os.environ.items() if key in ("LANG", "HOME")}
        return (
            kept
            | {key: self.here(value) for key, value in given.items()}
            | {
                "PATH": os.pathsep.join([*folders, os.environ["PATH"]]),
                # Each container has a name of its own.
                "HOSTNAME": name,
                "MIGRATION_HOME": str(self.folder / "home" / name),
            }
        )

    def command(self, name: str) -> list[str]:
        given = SERVICES[name]["command"]
        parts = shlex.split(given) if isinstance(given, str) else given
        parts = [self.here(part).replace("%h", name) for part in parts]
        return [*packages.command("prometheus"), *parts] if name == "prometheus" else parts

    @contextmanager
    def service(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        """A service for the time of the block."""
        log = self.folder / f"{name}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                self.command(name),
                env=self.environment(name),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            kill_group(process)
            print(name, log.read_text(errors="replace")[-3000:])

    def is_healthy(self, name: str) -> bool:
        """What Docker would find by the service's own check."""
        kind, *test = SERVICES[name]["healthcheck"]["test"]
        test = [self.here(part) for part in test]
        ended = subprocess.run(
            ["/bin/sh", "-c", *test] if kind == "CMD-SHELL" else test,
            env=self.environment(name),
            cwd=self.folder,
            capture_output=True,
            check=False,
        )
        return ended.returncode == 0


@pytest.mark.timeout(420)
def test_a_run_goes_through_the_services_of_the_file_and_each_is_found_healthy(
    product: Product, tmp_path: Path
) -> None:
    with product.engine.begin() as connection:
        sample.load(connection, 1_000)
    machine = Machine(tmp_path, product.environment["DATABASE_URL"])
    names = [name for name in SERVICES if name not in ELSEWHERE]
    assert names[0] == "redis"
    with ExitStack() as running:
        started = {}
        for name in names:
            # A check that cannot fail says nothing.
            assert name in ANOTHERS or not machine.is_healthy(name), name
            started[name] = running.enter_context(machine.service(name))
            until(lambda name=name: machine.is_healthy(name))
        ended = subprocess.run(
            [*SERVICES["producer"]["entrypoint"], "enqueue-all", "--wait", "--json"],
            env=machine.environment("producer"),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 3, ended.stderr
        query = {"query": 'migration_run_info{state="completed_with_quarantine"}'}
        address = f"http://127.0.0.1:{machine.port('9090')}/api/v1/query"
        until(lambda: httpx.get(address, params=query).json()["data"]["result"])
        for name, process in reversed(started.items()):
            process.terminate()
            # Docker would kill after ten seconds where nothing is said.
            grace = SERVICES[name].get("stop_grace_period", "10s")
            process.wait(float(grace.rstrip("s")))
    log = "".join((tmp_path / f"{name}.log").read_text() for name in names)
    for secret in ("redis-password", "flower-auth"):
        assert (tmp_path / "secrets" / secret).read_text() not in log


def test_redis_asks_for_the_password_and_shows_it_to_nobody(
    product: Product, tmp_path: Path
) -> None:
    machine = Machine(tmp_path, product.environment["DATABASE_URL"])
    password = (tmp_path / "secrets/redis-password").read_text()
    with machine.service("redis") as process:
        until(lambda: machine.is_healthy("redis"))
        shown = Path(f"/proc/{process.pid}/cmdline").read_bytes().decode()
        assert "redis-server" in shown and password not in shown
        port = machine.port("6379")
        cli = [tmp_path / "bin/redis-cli", "-p", port]
        refused = subprocess.run([*cli, "ping"], capture_output=True, text=True, check=False)
        assert "NOAUTH" in refused.stdout + refused.stderr
        asked = subprocess.run(
            [*cli, "config", "get", "appendonly", "maxmemory-policy"],
            env=os.environ | {"REDISCLI_AUTH": password},
            capture_output=True,
            text=True,
            check=False,
        )
        assert {"yes", "noeviction"} <= set(asked.stdout.split()), asked
        # It is the first process itself, so that Docker's signal reaches it.
        process.terminate()
        assert process.wait(10) == 0
