"""Programs that no wheel brings: Debian's and npm's packages, unpacked into `.system` without root.

`make test-system` runs this first. What cannot be had is noted with the reason, for the tests to
be skipped by and listed at the end; it is tried again the next time.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from producer.embedded.processes import owner_of

HERE = Path(__file__).parent
HOME = Path(".system").absolute()
ROOT = HOME / "debian" / "root"
MODULES = HOME / "npm" / "node_modules"
LISTS = (HERE / "debian.txt", HERE / "package.json", HERE / "package-lock.json")
# Chromium's own folder first: the script in usr/bin starts the machine's.
_FOLDERS = ("usr/lib/chromium", "usr/bin", "usr/sbin", "usr/lib/postgresql/*/bin")
_MISSING = HOME / "missing.json"
_STAMP = HOME / "ready"


def install() -> dict[str, str]:
    """Fetch what is not there yet; returns what is missing and why."""
    _make_home()
    wanted = "".join(path.read_text() for path in LISTS)
    names = [line for line in LISTS[0].read_text().splitlines() if line and line[0] != "#"]
    modules: list[str] = list(json.loads(LISTS[1].read_text())["dependencies"])
    if _STAMP.exists() and _STAMP.read_text() == wanted:
        names, modules = ([name for name in each if name in missing()] for each in (names, modules))
    found = _fetch_debian(names) if names else {}
    found |= _fetch_npm(modules) if modules else {}
    _MISSING.write_text(json.dumps(found))
    _STAMP.write_text(wanted)
    return found


def missing() -> dict[str, str]:
    """The packages that could not be had, with the reason of each."""
    found: dict[str, str] = json.loads(_MISSING.read_text()) if _MISSING.exists() else {}
    return found


def program(name: str) -> Path | None:
    """A program of one of the packages: the unpacked one, or what the machine has already."""
    for root in (ROOT, Path("/")):
        for pattern in _FOLDERS:
            for found in sorted(root.glob(f"{pattern}/{name}"), reverse=True):
                return found
    return None


def need(name: str, package: str = "") -> Path:
    """A program of one of the packages; skips the test where it is not to be had."""
    found = program(name)
    if found is None:
        why = missing().get(package or name, "it was not unpacked: make test-system does that")
        pytest.skip(f"needs {package or name}: {why}")
    return found


def command(name: str, package: str = "") -> list[str]:
    """How such a program is called: with the libraries that came with it."""
    found = need(name, package)
    if not found.is_relative_to(ROOT):
        return [str(found)]
    return ["/usr/bin/env", f"LD_LIBRARY_PATH={libraries()}", str(found)]


def libraries() -> str:
    """LD_LIBRARY_PATH for the unpacked programs."""
    # PulseAudio's own library is in a folder of its own, which Debian's loader is told of.
    patterns = ("usr/lib/*/*.so*", "usr/lib/*/pulseaudio/*.so*", "lib/*/*.so*")
    folders = {path.parent for pattern in patterns for path in ROOT.glob(pattern)}
    return os.pathsep.join(sorted(map(str, folders)))


def _make_home() -> None:
    """A folder that also the user can enter whom root starts servers as."""
    owner = owner_of(HOME)
    if not HOME.exists():
        HOME.unlink(missing_ok=True)
        HOME.mkdir(mode=0o755)
        if not owner.can_enter(HOME):
            HOME.rmdir()
            elsewhere = Path("/var/tmp") / f"migration-system-{os.geteuid()}"
            elsewhere.mkdir(mode=0o755, exist_ok=True)
            if elsewhere.is_symlink() or elsewhere.stat().st_uid != os.geteuid():
                sys.exit(f"{elsewhere} is a link, or belongs to somebody else: remove it")
            HOME.symlink_to(elsewhere)


def _fetch_debian(names: list[str]) -> dict[str, str]:
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        return dict.fromkeys(names, "this machine has no apt-get")
    for folder in ("state/lists/partial", "cache/archives/partial", "root"):
        (ROOT.parent / folder).mkdir(parents=True, exist_ok=True)
    # What is installed here need not be fetched, and must not stop apt where it is inconsistent.
    installed = Path("/var/lib/dpkg/status").read_text().splitlines(keepends=True)
    relations = ("Depends:", "Pre-Depends:", "Breaks:", "Conflicts:")
    (ROOT.parent / "status").write_text(
        "".join(line for line in installed if not line.startswith(relations))
    )
    updated = _apt("update")
    if updated.returncode != 0:
        return dict.fromkeys(names, _reason(updated))
    found = {}
    for name in names:
        fetched = _apt("install", "--download-only", "--no-upgrade", "-y", name)
        if fetched.returncode != 0:
            found[name] = _reason(fetched)
    for archive in sorted((ROOT.parent / "cache/archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "--extract", archive, ROOT], check=True)
        archive.unlink()
    return found


def _apt(*arguments: str) -> subprocess.CompletedProcess[str]:
    """apt-get with the machine's sources and installed packages, and all that it writes in here."""
    settings = {
        "Dir::State": ROOT.parent / "state",
        "Dir::State::status": ROOT.parent / "status",
        "Dir::Cache": ROOT.parent / "cache",
        "Debug::NoLocking": "true",
        "APT::Sandbox::User": "",
        "APT::Install-Recommends": "false",
        "Acquire::Retries": "2",
    }
    return _run(
        "apt-get", "-qq", *(f"-o{name}={value}" for name, value in settings.items()), *arguments
    )


def _fetch_npm(names: list[str]) -> dict[str, str]:
    if not shutil.which("npm"):
        return dict.fromkeys(names, "this machine has no npm")
    MODULES.parent.mkdir(exist_ok=True)
    for path in LISTS[1:]:
        shutil.copy(path, MODULES.parent)
    # npm finds no lock file behind a link.
    folder = str(MODULES.parent.resolve())
    # Helm comes in a package whose peers, libraries of a cloud, nobody needs.
    options = ("--ignore-scripts", "--no-audit", "--legacy-peer-deps")
    ended = _run("npm", "ci", "--prefix", folder, *options)
    return dict.fromkeys(names, _reason(ended)) if ended.returncode != 0 else {}


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def _reason(ended: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in (ended.stderr or ended.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("E: ", "npm error"))]
    return " ".join((errors or lines or [f"status {ended.returncode}"])[0].split())[:200]


if __name__ == "__main__":
    with open(HERE / "debian.txt") as one_at_a_time:
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        for package, why in install().items():
            print(f"{package} cannot be had: {why}")
