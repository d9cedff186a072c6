"""The units for systemd: valid by systemd's own word, with commands and settings that exist."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from models.settings import SECRETS
from producer.cli import cli

UNITS = sorted((Path(__file__).parents[2] / "deploy/systemd").glob("*.service"))
INSTALLED = "/opt/migration/.venv/bin"


def test_systemd_accepts_every_unit(tmp_path: Path) -> None:
    if not (analyze := shutil.which("systemd-analyze")):
        pytest.skip("needs systemd-analyze: apt-get install systemd")
    copies = []
    for unit in UNITS:
        copy = tmp_path / unit.name.replace("@", "@1")
        # The programs must be there: those of this environment.
        copy.write_text(unit.read_text().replace(INSTALLED, str(Path(sys.executable).parent)))
        # An instance is made of the template beside it.
        (tmp_path / unit.name).write_text(copy.read_text())
        copies.append(str(copy))
    found = subprocess.run(
        [analyze, "verify", "--man=no", *copies], capture_output=True, text=True, check=False
    )
    # It names what it does not know, and then ends with 0.
    assert (found.returncode, found.stderr) == (0, "") and len(copies) == 3


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_commands_and_settings_of_a_unit_exist(unit: Path) -> None:
    said = unit.read_text()
    (command,) = re.findall(r"^ExecStart=(.*)$", said, re.MULTILINE)
    program, *arguments = shlex.split(command)
    assert program.startswith(f"{INSTALLED}/")
    if Path(program).name == "producer":
        found = cli.commands[arguments[0]]
        with found.make_context(arguments[0], arguments[1:]) as context:
            assert isinstance(context, click.Context) and context.params["port"]
    else:
        assert arguments[:2] == ["--app=worker", "worker"]
    files = dict(re.findall(r"(\w+)_FILE=%d/([\w-]+)", said))
    assert {"DATABASE_URL", "REDIS_URL"} <= set(files) <= set(SECRETS)
    credentials = re.findall(r"^LoadCredential=([\w-]+):/etc/migration/\1$", said, re.MULTILINE)
    assert sorted(credentials) == sorted(files.values())
