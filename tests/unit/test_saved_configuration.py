"""The dashboard's configuration files in a backup: private there, and put back as they were."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from producer.backup import configuration, create

MODES = {".": 0o755, "app.env": 0o644, "start.sh": 0o755, "secret": 0o600, "keys": 0o550}
MODES |= {"keys/public": 0o444, "empty": 0o711}


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    config = tmp_path / "config"
    for name in (".", "keys", "empty"):
        (config / name).mkdir()
    for name in ("app.env", "start.sh", "secret", "keys/public"):
        (config / name).write_text(name)
    for name, mode in MODES.items():
        (config / name).chmod(mode)
    return config


def save(config: Path) -> tuple[Path, dict[str, str]]:
    """A copy as a backup has it, and the modes of its manifest."""
    place = config.parent / "backup"
    modes = configuration.save(config, place)
    create._close(place)
    return place, modes


def modes_of(folder: Path) -> dict[str, int]:
    return {
        path.relative_to(folder).as_posix(): stat.S_IMODE(path.stat().st_mode)
        for path in (folder, *folder.rglob("*"))
    }


def test_a_backup_is_private_and_each_path_gets_its_mode_back(config: Path) -> None:
    place, modes = save(config)
    assert {mode & 0o077 for mode in modes_of(place).values()} == {0}
    (config / "app.env").write_text("changed")
    (config / "app.env").chmod(0o666)
    (config / "secret").unlink()
    for _ in range(2):
        configuration.put_back(place, config, modes)
        assert modes_of(config) == MODES
        assert (config / "app.env").read_text() == "app.env"
    elsewhere = config.parent / "new" / "config"
    configuration.put_back(place, elsewhere, modes)
    assert modes_of(elsewhere) == MODES
    assert (elsewhere / "keys" / "public").read_text() == "keys/public"
    file = "app.env"
    assert (elsewhere / file).stat().st_mtime_ns == (place / file).stat().st_mtime_ns


def test_a_backup_without_modes_leaves_those_that_are_there(config: Path) -> None:
    place, _ = save(config)
    (config / "start.sh").unlink()
    (config / "empty").rmdir()
    # Nobody may write there otherwise.
    there = {"keys": 0o750, "keys/public": 0o640}
    for name, mode in there.items():
        (config / name).chmod(mode)
    configuration.put_back(place, config, {})
    assert modes_of(config) == MODES | there | {"start.sh": 0o644, "empty": 0o755}


def test_what_the_backup_does_not_hold_stays(config: Path) -> None:
    place, modes = save(config)
    (config / "later").write_text("later")
    (config / "later").chmod(0o640)
    configuration.put_back(place, config, modes)
    assert modes_of(config) == MODES | {"later": 0o640}
