"""A release: the wheel holds all that the product needs, and works from any folder on its own.

The dependencies come from the package index that pip is set to.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("models", "producer", "worker")
# What the build reads.
SOURCES = (*PACKAGES, "celeryconfig.py", "pyproject.toml", "README.md")


def run(*command: str | Path, cwd: Path, **more: Any) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        **more,
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    return ended


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of the source as it is, and the wheel that is built from it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source)
    build = ("build", "--no-build-isolation", "--offline", "--no-cache", "--out-dir", out)
    run(Path(sys.executable).parent / "uv", *build, "--python", sys.executable, cwd=source)
    return out


def test_the_wheel_and_the_sdist_hold_every_file_of_the_product_and_nothing_else(
    dist: Path,
) -> None:
    wanted = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    } | {"celeryconfig.py"}
    assert len(wanted) > 90 and any(not name.endswith(".py") for name in wanted)
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as wheel:
        inside = {name for name in wheel.namelist() if ".dist-info/" not in name}
        (entry,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
        assert "producer = producer.cli:main" in wheel.read(entry).decode()
    assert inside == wanted
    with tarfile.open(next(dist.glob("*.tar.gz"))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert wanted <= names


@pytest.mark.timeout(600)
def test_the_wheel_alone_runs_the_demonstration_from_any_folder(dist: Path, tmp_path: Path) -> None:
    venv, folder = tmp_path / "venv", tmp_path / "some folder"
    folder.mkdir()
    run(sys.executable, "-m", "venv", venv, cwd=tmp_path)
    wheel = next(dist.glob("*.whl"))
    run(venv / "bin/pip", "install", "--quiet", wheel, cwd=folder)
    kept = ("HOME", "LANG", "TMPDIR")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment["PATH"] = f"{venv}/bin:{os.defpath}"
    ended = run(venv / "bin/producer", "demo", "--users=500", "--json", cwd=folder, env=environment)
    found = json.loads(ended.stdout)
    assert found["state"] == "completed_with_quarantine"
    assert found["users"]["migrated"] + found["users"]["quarantined"] == 500
    assert found["verification"]["differences"] == 0
    # It is the installed one that ran.
    where = run(venv / "bin/python", "-c", "import worker; print(worker.__file__)", cwd=folder)
    assert where.stdout.startswith(str(venv))
    run(venv / "bin/producer", "servers", "stop", cwd=folder, env=environment)
