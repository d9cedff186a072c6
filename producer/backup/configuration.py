"""The folder of configuration files in a backup: copied for its owner only, put back as it was."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

from models.errors import Misconfigured


def require(config: Path) -> None:
    """Raise Misconfigured for the first path in the folder that could not be copied."""

    def refuse(failure: OSError) -> None:
        raise _refused(Path(failure.filename), "cannot be read", "Make it readable")

    for folder, _, files in os.walk(config, followlinks=True, onerror=refuse):
        for path in (Path(folder, name) for name in sorted(files)):
            if path.is_symlink() and not path.exists():
                raise _refused(path, "is a link that leads nowhere", "Correct or remove the link")
            if not path.is_file():
                raise _refused(path, "is not a regular file", "Remove it")
            if not os.access(path, os.R_OK):
                raise _refused(path, "cannot be read", "Make it readable")


def _refused(path: Path, why: str, fix: str) -> Misconfigured:
    return Misconfigured(
        f"{path} {why}: the configuration cannot be copied",
        hint=f"{fix}, or name another folder of configuration files: --config FOLDER."
        " No backup was begun.",
    )


def save(config: Path, place: Path) -> dict[str, str]:
    """Copy the folder; returns the mode of each file and folder in it, by its path inside.

    Links are followed. The copy keeps its modes until the backup is closed.
    """
    shutil.copytree(config, place)
    return {path.relative_to(place).as_posix(): f"{_mode(path):04o}" for path in _everything(place)}


def put_back(place: Path, config: Path, modes: Mapping[str, str]) -> None:
    """Write the saved files over those that are there; others stay. Safe to repeat.

    A path without a mode, as in backups of before modes were saved, keeps the one that it has, or
    gets that of any new file.
    """
    folders: list[tuple[Path, int]] = []
    for source in _everything(place):
        name = source.relative_to(place)
        saved = modes.get(name.as_posix())
        mode = None if saved is None else int(saved, 8)
        target = config / name
        if not source.is_dir():
            _write(source, target, mode)
            continue
        target.mkdir(mode=0o777 if mode is None else stat.S_IRWXU, parents=True, exist_ok=True)
        if mode is not None:
            # Files are written below before the folder may be closed for writing.
            _set_mode(target, mode | stat.S_IRWXU)
            folders.append((target, mode))
    for target, mode in reversed(folders):
        _set_mode(target, mode)


def _write(source: Path, target: Path, mode: int | None) -> None:
    """Write a file; a secret is never in one that more people can read than before."""
    if mode is not None:
        target.touch(mode=0o600)
        _set_mode(target, mode | stat.S_IWUSR)
    shutil.copyfile(source, target)
    times = source.stat()
    os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))
    if mode is not None:
        _set_mode(target, mode)


def _everything(place: Path) -> list[Path]:
    """The folder and all that it holds, each folder before what is in it."""
    return [place, *sorted(place.rglob("*"))]


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _set_mode(path: Path, mode: int) -> None:
    # The mode of somebody else's file can stay, but not be set.
    if _mode(path) != mode:
        path.chmod(mode)
