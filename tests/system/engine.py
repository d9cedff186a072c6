"""A Docker engine of the tests' own: a Debian in `.system`, unpacked once, in a mount namespace.

It needs root, and nothing that is installed: `debootstrap` comes with the other packages. The
images and their layers stay for the next time.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.system import packages
from tests.wait import comes

HOME = packages.HOME / "containers"
SUITE = "trixie"
BASE = "ca-certificates,python3,python3-venv"
ENGINE = ("docker.io", "docker-cli", "docker-compose", "iptables")
KEYS = "usr/share/keyrings/debian-archive-keyring.gpg"
# Where the engine sees the folder of the test; Compose's paths are relative to it.
SITE = "/site"

# In a mount namespace of its own: whatever is mounted ends with its processes.
_INSTALL = """
set -eu
cd "$1"
mount -t proc proc proc
printf '#!/bin/sh\\nexit 101\\n' > usr/sbin/policy-rc.d
chmod +x usr/sbin/policy-rc.d
cp /etc/resolv.conf etc/
shift
chroot . apt-get -qq update
DEBIAN_FRONTEND=noninteractive chroot . apt-get -qq install --yes --no-install-recommends "$@"
"""
# pivot_root and not chroot: the engine cannot enter a container from a chroot. A process may not
# raise its limits here, so containers get small ones.
_START = """
set -eu
mount --make-rprivate /
cd "$1"
mount --bind root root
mkdir -p root/old root/site root/var/lib/docker
mount -t proc proc root/proc
mount --rbind /sys root/sys
mount --rbind /dev root/dev
mount -t tmpfs tmpfs root/run
mount --bind data root/var/lib/docker
mount --bind "$2" root/site
cp /etc/resolv.conf root/etc/
cd root
pivot_root . old
umount -l /old
exec dockerd --iptables=false --ip6tables=false \
    --default-ulimit nofile=8192:8192 --default-ulimit nproc=4096:4096
"""


class Engine:
    """A running engine, and its command line in its own view of the files."""

    def __init__(self, daemon: subprocess.Popen[bytes], log: Path) -> None:
        self._daemon, self._log = daemon, log

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command where the engine is, in the folder of the test; returns its output."""
        ended = subprocess.run(
            [
                "nsenter",
                "--mount",
                f"--target={self._daemon.pid}",
                "sh",
                "-c",
                f'cd {SITE} && exec "$@"',
                "sh",
                *command,
            ],
            env={"PATH": os.environ["PATH"], "DOCKER_BUILDKIT": "0", "HOME": "/root"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert not check or ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
        return ended.stdout

    def docker(self, *arguments: str, check: bool = True) -> str:
        """`docker` with these arguments."""
        return self.run("docker", *arguments, check=check)

    def compose(self, *arguments: str, check: bool = True) -> str:
        """`docker compose` with these arguments."""
        return self.run("docker", "compose", *arguments, check=check)

    def answers(self) -> bool:
        """Whether the engine answers."""
        return bool(self.docker("info", "--format={{.ID}}", check=False).strip())

    def log(self) -> str:
        """The end of what the engine itself has said."""
        return self._log.read_text(errors="replace")[-2000:]


@contextmanager
def engine(site: Path) -> Iterator[Engine]:
    """An engine that sees the folder as /site; skips the test where there can be none."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it starts a Docker engine in a mount namespace")
    for program in ("setpriv", "unshare", "nsenter", "chroot"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}, of util-linux and coreutils")
    _unpack()
    (HOME / "data").mkdir(exist_ok=True)
    log = HOME / "dockerd.log"
    with log.open("wb") as out:
        daemon = subprocess.Popen(
            [
                "setpriv",
                "--pdeathsig=TERM",
                "unshare",
                "--mount",
                "sh",
                "-c",
                _START,
                "sh",
                str(HOME),
                str(site),
            ],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    found = Engine(daemon, log)
    try:
        comes(lambda: daemon.poll() is not None or found.answers())
        if not found.answers():
            pytest.skip(f"no Docker engine starts here: {found.log()[-300:]}")
        yield found
    finally:
        with suppress(ProcessLookupError):
            os.killpg(daemon.pid, signal.SIGTERM)
        daemon.wait(60)
        print(found.log())


def _unpack() -> None:
    """Unpack a small Debian, and beside it one with the engine; once."""
    if (HOME / "root").exists():
        return
    script = packages.program("debootstrap")
    if script is None:
        pytest.skip(f"needs debootstrap: {packages.missing().get('debootstrap', 'not unpacked')}")
    HOME.mkdir(exist_ok=True)
    base, unfinished = HOME / "base", HOME / "unfinished"
    for folder in (base, unfinished):
        shutil.rmtree(folder, ignore_errors=True)
    keys = next(path for root in (packages.ROOT, Path("/")) if (path := root / KEYS).exists())
    _do(
        ["sh", str(script), "--variant=minbase", f"--include={BASE}", f"--keyring={keys}", SUITE,
         str(base)],
        DEBOOTSTRAP_DIR=str(packages.ROOT / "usr/share/debootstrap"),
    )  # fmt: skip
    _do(["cp", "--archive", str(base), str(unfinished)])
    _do(["unshare", "--mount", "--propagation=private", "sh", "-c", _INSTALL, "sh",
         str(unfinished), *ENGINE])  # fmt: skip
    unfinished.rename(HOME / "root")


def base_image(engine: Engine, name: str) -> None:
    """Import the small Debian as an image, with what this machine trusts."""
    if engine.docker("images", "--quiet", name):
        return
    base = HOME / "base"
    for folder in ("var/lib/apt/lists", "var/cache/apt", "usr/share/doc", "usr/share/locale"):
        shutil.rmtree(base / folder, ignore_errors=True)
    trusted = Path("/etc/ssl/certs/ca-certificates.crt")
    if trusted.exists():
        shutil.copyfile(trusted, base / trusted.relative_to("/"))
    with suppress(FileExistsError):
        (base / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    archive = HOME / "root/base.tar"
    _do(["tar", "--create", f"--directory={base}", f"--file={archive}", "."])
    engine.docker("import", "/base.tar", name)
    archive.unlink()


def _do(command: list[str], **environment: str) -> None:
    """Run a command that prepares; where it fails, the test is skipped with its last words."""
    ended = subprocess.run(
        command,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if ended.returncode != 0:
        last = " ".join(ended.stdout.split())[-300:]
        pytest.skip(f"{command[0]} could not prepare a Docker engine: {last}")
