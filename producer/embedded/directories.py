"""Where the embedded servers of one MIGRATION_HOME keep their data and their sockets.

`home/servers` holds everything. It is a link to a folder under /var/tmp where the servers' user
cannot come: root's servers run as `nobody`, which cannot enter /root, and PostgreSQL's tools
hand paths to a shell. The sockets lie in a short folder under the temporary directory, since a
socket's path has room for 107 bytes, and only that folder's mode guards them.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from models.errors import Misconfigured
from producer.embedded.processes import PATIENCE_SECONDS, Owner, owner_of, stop_servers, until

# 103 on macOS, 107 on Linux: https://man7.org/linux/man-pages/man7/unix.7.html
LONGEST_SOCKET_PATH = 103
POSTGRES_SOCKET = ".s.PGSQL.5432"
REDIS_SOCKET = "redis.sock"
_ELSEWHERE = Path("/var/tmp")  # survives a reboot, which /tmp may not
_SPECIAL_IN_SHELL = re.compile(r"[\"$`\\\n]")
_SPECIAL_IN_URL = re.compile(r"[^\w./+-]", re.ASCII)


@dataclass(frozen=True)
class Place:
    """The folders of one pair of servers; `root` and `sockets` exist, and no path needs quoting."""

    owner: Owner
    tag: str
    root: Path
    sockets: Path

    @property
    def postgres(self) -> Path:
        return self.root / "postgres"

    @property
    def redis(self) -> Path:
        return self.root / "redis"


def tag_of(home: Path, owner: Owner) -> str:
    """The name that a home's servers show in their titles; the same however `home` is written."""
    digest = hashlib.sha256(os.fsencode(home.resolve())).hexdigest()[:12]
    return f"migration-{owner.uid}-{digest}"


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Let one process at a time start or stop the servers of `home`, which is made if missing.

    Raises Misconfigured when `home` cannot be written, or stays locked for minutes.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        # Read-only is enough for flock, and lets the home's owner in after root was there first.
        lock = os.open(home / "servers.lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as failure:
        raise Misconfigured(
            f"MIGRATION_HOME: {home} cannot be written: {failure.strerror}",
            hint="Set MIGRATION_HOME to a folder of your own.",
        ) from None
    try:
        if not until(lambda: _lock(lock), PATIENCE_SECONDS):
            raise Misconfigured(
                f"Another command has been starting or stopping the servers of {home} for minutes",
                hint="Look for it with `ps`, or set MIGRATION_HOME to another folder.",
            )
        yield
    finally:
        os.close(lock)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_plain(path: Path) -> bool:
    """True when `path` keeps its meaning inside a shell's double quotes, as pg_ctl uses it."""
    return not _SPECIAL_IN_SHELL.search(str(path))


def find(home: Path) -> Place | None:
    """The place of servers that were started before; None where nothing usable is left."""
    with suppress(Misconfigured, OSError):
        root = (home / "servers").resolve(strict=True)
        sockets = (root / "sockets").resolve(strict=True)
        owner = owner_of(root / "postgres")
        _require_private(sockets, owner)
        return Place(owner, tag_of(home, owner), root, sockets)
    return None


def prepare(home: Path) -> Place:
    """Make what is missing of the home's folders; call it under `locked`.

    Raises Misconfigured when a folder belongs to somebody else or cannot be made.
    """
    try:
        owner = owner_of(home / "servers" / "postgres")
        tag = tag_of(home, owner)
        root = _prepare_root(home.resolve(), owner, tag)
        for folder in (root / "postgres", root / "redis"):
            _make(folder, owner)
        return Place(owner, tag, root, _prepare_sockets(root, owner, tag))
    except OSError as failure:
        raise Misconfigured(
            f"The embedded servers' folders cannot be made: {failure}",
            hint="Set MIGRATION_HOME to a folder of your own on a disk with room.",
        ) from None


def erase(home: Path) -> None:
    """Remove the data of servers that are stopped, of a deleted home too."""
    root = home / "servers"
    tag = tag_of(home, owner_of(root / "postgres"))
    outside = [(root / "sockets").resolve(), root.resolve(), _elsewhere(tag)]
    outside += [parent / tag for parent in _temporary_directories()]
    for folder in outside:
        # A link leads anywhere: nothing is removed outside the home but what was made there.
        if folder.name in (tag, f"{tag}-data") and not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)
    if root.is_symlink():
        root.unlink()
    shutil.rmtree(root, ignore_errors=True)


def _prepare_root(home: Path, owner: Owner, tag: str) -> Path:
    root = home / "servers"
    if root.is_symlink() and not root.exists():
        root.unlink()
    if not root.exists():
        _make_root(root, owner)
        if not is_plain(root) or not owner.can_enter(root):
            root.rmdir()
            root.symlink_to(_make_elsewhere(owner, tag))
    _require_owner(root.resolve(), {os.geteuid(), owner.uid})
    return root.resolve()


def _make_elsewhere(owner: Owner, tag: str) -> Path:
    folder = _elsewhere(tag)
    with suppress(FileNotFoundError):
        _require_owner(folder, {os.geteuid()})
        # The home that linked here was deleted, and its data with it.
        stop_servers(tag, "postgres", "valkey-server")
        shutil.rmtree(folder)
    _make_root(folder, owner)
    return folder


def _elsewhere(tag: str) -> Path:
    parent = _ELSEWHERE if _ELSEWHERE.is_dir() else Path(tempfile.gettempdir())
    return parent / f"{tag}-data"


def _temporary_directories() -> list[Path]:
    return [Path(name).resolve() for name in (tempfile.gettempdir(), "/tmp", "/var/tmp")]


def _make_root(folder: Path, owner: Owner) -> None:
    folder.mkdir(mode=0o700)
    if owner.is_somebody_else:
        # Whatever the umask says: its own folders inside are closed to others again.
        folder.chmod(0o755)


def _prepare_sockets(root: Path, owner: Owner, tag: str) -> Path:
    link = root / "sockets"
    if link.is_dir():
        _require_private(link.resolve(), owner)
        return link.resolve()
    for parent in _temporary_directories():
        folder = parent / tag
        if _is_fit_for_sockets(folder, owner):
            _make(folder, owner)
            _require_private(folder, owner)
            link.unlink(missing_ok=True)
            link.symlink_to(folder)
            return folder
    raise Misconfigured(
        "No temporary directory is fit for the embedded servers' sockets",
        hint="Set TMPDIR to a folder of your own with a short, plain name.",
    )


def _is_fit_for_sockets(folder: Path, owner: Owner) -> bool:
    parent = folder.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        return False
    mode = parent.stat().st_mode
    replaceable = mode & (stat.S_IWGRP | stat.S_IWOTH) and not mode & stat.S_ISVTX
    return (
        not replaceable
        and len(os.fsencode(folder / POSTGRES_SOCKET)) <= LONGEST_SOCKET_PATH
        and not _SPECIAL_IN_URL.search(str(folder))
        and owner.can_enter(parent)
    )


def _make(folder: Path, owner: Owner) -> None:
    """Make a 0700 folder of the owner's, without following a link that lies in its place."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if owner.is_somebody_else and folder.lstat().st_uid == os.geteuid():
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            os.fchown(descriptor, owner.uid, owner.gid)
        finally:
            os.close(descriptor)
    _require_owner(folder, {owner.uid})


def _require_private(folder: Path, owner: Owner) -> None:
    _require_owner(folder, {owner.uid})
    if stat.S_IMODE(folder.stat().st_mode) & 0o077:
        raise Misconfigured(
            f"Others can enter {folder}, where the servers' sockets would lie",
            hint=f"Remove it, or run chmod 700 {folder}.",
        )


def _require_owner(folder: Path, uids: set[int]) -> None:
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in uids:
        raise Misconfigured(
            f"{folder} is a link, or belongs to user {found.st_uid}: the embedded servers are not"
            " started there",
            hint="Remove it, or run the command as that user, or set MIGRATION_HOME elsewhere.",
        )
