"""PostgreSQL's own client programs: the version that fits the server, and how they are called."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from models.errors import MigrationError, Misconfigured
from models.postgres import addresses
from producer.embedded import programs

_DISTRIBUTIONS = (
    "usr/lib/postgresql/*/bin",
    "usr/pgsql-*/bin",
    "opt/homebrew/opt/postgresql*/bin",
)


_SERVICE = "migration"


class ClientFailed(MigrationError):
    """A client program ended with an error; what it said is in the hint."""

    kind = "client_failed"


@dataclass(frozen=True)
class Clients:
    """A folder with pg_dump, pg_restore and psql of one major version."""

    folder: Path
    major: int

    def run(self, program: str, *arguments: str, url: str, stdin: Path | None = None) -> None:
        """Run a program on the database of that address; raises ClientFailed.

        The address goes through the environment: a command line is there for all to read.
        """
        with open(stdin or os.devnull, "rb") as given, _environment(url) as environment:
            ended = subprocess.run(
                [str(self.folder / program), *arguments],
                env=environment,
                stdin=given,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
        if ended.returncode != 0:
            # It may quote a row, but no password.
            lines = [line for line in ended.stderr.splitlines() if "error:" in line.lower()]
            raise ClientFailed(
                f"{program} ended with status {ended.returncode}",
                hint="\n".join(lines[:3]) or ended.stderr[-500:],
            )


def find(server_version: int) -> Clients:
    """The programs of the server's own major version, or of the nearest newer one.

    Looked for on the PATH, where distributions put them, and in the wheel of the embedded server.
    Raises Misconfigured where none is new enough.
    """
    server = server_version // 10000
    found = sorted(
        (clients for clients in map(_examine, _folders()) if clients and clients.major >= server),
        key=lambda clients: clients.major,
    )
    if not found:
        raise Misconfigured(
            f"No pg_dump of version {server} or newer was found: the server is {server}",
            hint=f"Install the client programs (Debian: postgresql-client-{server}).",
        )
    return found[0]


def _folders() -> list[Path]:
    on_path = shutil.which("pg_dump")
    folders = [Path(on_path).resolve().parent] if on_path else []
    for pattern in _DISTRIBUTIONS:
        folders += Path("/").glob(pattern)
    with suppress(Misconfigured):
        folders.append(programs.client_bin_dir())
    return folders


def _examine(folder: Path) -> Clients | None:
    if not all((folder / name).exists() for name in ("pg_dump", "pg_restore", "psql")):
        return None
    try:
        said = subprocess.run(
            [str(folder / "pg_dump"), "--version"], capture_output=True, text=True, check=False
        ).stdout
    except OSError:
        return None
    version = re.search(r"\) (\d+)", said)
    return Clients(folder, int(version[1])) if version else None


@contextmanager
def _environment(url: str) -> Iterator[dict[str, str]]:
    """What libpq reads instead of a command line: all that the product itself connects with.

    The parameters are a service of our own, in a file for this user's eyes: a service goes before
    libpq's variables, as an address does. The password is a variable, which keeps its spaces.
    """
    given = addresses.postgresql(url)
    password = given.pop("password", None)
    with tempfile.TemporaryDirectory(prefix="migration-") as folder:
        services = Path(folder) / "services"
        services.touch(mode=0o600)
        services.write_text(
            "\n".join([f"[{_SERVICE}]", *(f"{name}={value}" for name, value in given.items()), ""])
        )
        ours = {
            "PGSERVICEFILE": str(services),
            "PGSERVICE": _SERVICE,
            "PGAPPNAME": "migration",
            "LC_ALL": "C",
        }
        yield os.environ | ours | ({"PGPASSWORD": password} if password else {})
