"""The dashboard's configuration files in a backup: private there, and put back as they were."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from models.errors import Misconfigured
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


def link_to_nowhere(path: Path) -> str:
    path.symlink_to("/nowhere/at/all")
    return "leads nowhere"


def link_to_itself(path: Path) -> str:
    path.symlink_to(path)
    return "leads nowhere"


def pipe(path: Path) -> str:
    os.mkfifo(path)
    return "not a regular file"


@pytest.mark.parametrize("make", [link_to_nowhere, link_to_itself, pipe])
@pytest.mark.parametrize("folder", [".", "empty"])
def test_what_cannot_be_copied_is_refused_before_the_database_is_asked(
    config: Path, folder: str, make: Callable[[Path], str]
) -> None:
    odd = config / folder / "odd"
    why = make(odd)
    # Whoever asks it meets another error.
    engine = sa.create_engine("postgresql+psycopg2://127.0.0.1:1/nothing")
    wanted = config.parent / "place" / "safe"
    with pytest.raises(Misconfigured, match=f"{odd} .*{why}") as refused:
        create.make(engine, "", {}, wanted, config, print)
    assert "--config" in refused.value.hint
    assert not wanted.parent.exists()


def test_links_are_followed(config: Path) -> None:
    (config / "link").symlink_to("app.env")
    (config / "folder").symlink_to(config.parent / "other")
    (config.parent / "other").mkdir()
    configuration.require(config)
    place, modes = save(config)
    assert (place / "link").read_text() == "app.env" and not (place / "link").is_symlink()
    assert (place / "folder").is_dir() and modes["link"] == "0644"
