"""Dockerfile and docker-compose.yml: valid by Docker's own rules, hardened, without a secret."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.make_secrets import write
from producer.broker.messages import QUEUES
from worker.shutdown import GRACE_SECONDS

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
FOUND: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
OURS = {name: of for name, of in FOUND["services"].items() if "dashboard-" in of["image"]}


def test_it_is_valid_by_dockers_own_schema(tmp_path: Path) -> None:
    program = Path(sys.executable).parent / "check-jsonschema"
    check = [program, "--builtin-schema", "vendor.compose-spec"]
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(COMPOSE.read_text().replace("read_only: true", "reed_only: true"))
    for path, status in ((COMPOSE, 0), (wrong, 1)):
        ended = subprocess.run([*check, path], capture_output=True, text=True, check=False)
        assert ended.returncode == status, ended.stdout + ended.stderr


def test_every_name_that_it_uses_is_defined_in_it() -> None:
    services = FOUND["services"]
    for of in services.values():
        assert set(of.get("depends_on", ())) <= services.keys()
        assert set(of.get("secrets", ())) <= FOUND["secrets"].keys()
        for volume in of.get("volumes", ()):
            source = volume.partition(":")[0]
            assert (ROOT / source).exists() if source[0] == "." else source in FOUND["volumes"]
        for mounted in re.findall(r"/run/secrets/([\w-]+)", str(of)):
            assert mounted in of["secrets"]


def test_every_queue_has_a_worker_and_what_stays_is_restarted_and_looked_at() -> None:
    commands = " ".join(str(of.get("command")) for of in OURS.values())
    assert re.findall(r"--queues=(\S+)", commands) == [
        f"migration.{name}" for name in ("users", "projects", "verify", "credits", "control")
    ]
    assert len(QUEUES) == 5
    for name, of in FOUND["services"].items():
        if name != "producer":
            assert of["restart"] == "unless-stopped"
            assert of["healthcheck"]["test"]
        if name.startswith("worker"):
            assert int(of["stop_grace_period"].rstrip("s")) > 2 * GRACE_SECONDS


def test_our_containers_can_write_nowhere_and_may_nothing() -> None:
    assert len(OURS) == len(QUEUES) + 4
    for of in OURS.values():
        assert of["read_only"] and of["cap_drop"] == ["ALL"]
        assert of["security_opt"] == ["no-new-privileges:true"]


def test_there_is_no_secret_in_it_and_no_port_for_others() -> None:
    text = COMPOSE.read_text()
    assert "://" not in text.replace("http://127.0.0.1", "")
    for line in (line for line in text.splitlines() if "#" not in line):
        name, _, value = line.strip().partition(": ")
        if re.search("password|auth|url", name, re.IGNORECASE) and value:
            assert value.startswith(("/run/secrets/", "{file: ./secrets/"))
    ports = [port for of in FOUND["services"].values() for port in of.get("ports", ())]
    assert len(ports) == 4 and all(port.startswith("127.0.0.1:") for port in ports)


def test_make_secrets_writes_what_compose_names_once_and_for_nobody_else(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    written = write(folder)
    named = {Path(of["file"]).name for of in FOUND["secrets"].values()}
    assert set(written) == named
    before = {path.name: path.read_text() for path in folder.iterdir()}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (folder / "redis-url").unlink()
    assert write(folder) == ["redis-url"]
    assert {path.name: path.read_text() for path in folder.iterdir()} == before
    passwords = [before[name] for name in named if "url" not in name]
    assert len(set(passwords)) == len(passwords) and min(map(len, passwords)) >= 30
    other = tmp_path / "other"
    write(other)
    assert (other / "redis-password").read_text() != before["redis-password"]


def test_the_dockerfile_is_read_by_dockers_own_parser() -> None:
    dockerfile = pytest.importorskip("dockerfile", reason="no wheel for this platform")
    commands = dockerfile.parse_file(str(ROOT / "Dockerfile"))
    stages = [command for command in commands if command.cmd.upper() == "FROM"]
    assert len(stages) == 2
    last = [command for command in commands if command.start_line > stages[-1].start_line]
    (user,) = (command.value for command in last if command.cmd.upper() == "USER")
    assert user == ("10001:10001",)
    copied = {
        source
        for command in commands
        if command.cmd.upper() == "COPY" and not command.flags
        for source in command.value[:-1]
    }
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for source in copied:
        assert (ROOT / source).exists() and f"!{source}" in ignored
    with pytest.raises(dockerfile.GoParseError):
        dockerfile.parse_string("FROM python\nENV x\n")


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    program = Path(sys.executable).parent / "hadolint"
    ended = subprocess.run(
        [program, ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout


def test_the_image_gets_what_the_tests_have_and_nothing_of_the_work_on_it() -> None:
    def pins(path: Path) -> dict[str, str]:
        found = re.findall(r"^([a-z0-9._-]+)==(\S+)", path.read_text(), re.MULTILINE)
        return dict(found)

    image, tested = pins(ROOT / "deploy/requirements.lock"), pins(ROOT / "requirements.lock")
    assert image.items() <= tested.items()
    assert {"celery", "flower", "psycopg2-binary"} <= image.keys()
    assert not {"pytest", "mypy", "uv"} & image.keys()
