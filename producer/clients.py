"""PostgreSQL's own client programs: the version that fits the server, and how they are called."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import make_url

from models.errors import MigrationError, Misconfigured
from producer.local import programs

_DISTRIBUTIONS = (
    "usr/lib/postgresql/*/bin",
    "usr/pgsql-*/bin",
    "opt/homebrew/opt/postgresql*/bin",
)
# What libpq reads from an address, and from the environment instead.
_VARIABLES = {
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "channel_binding": "PGCHANNELBINDING",
    "host": "PGHOST",
    "port": "PGPORT",
}


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
        with open(stdin or os.devnull, "rb") as given:
            ended = subprocess.run(
                [str(self.folder / program), *arguments],
                env=_environment(url),
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
        folders.append(programs.postgres_bin_dir())
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


def _environment(url: str) -> dict[str, str]:
    parsed = make_url(url)
    given = {
        "PGHOST": parsed.host,
        "PGPORT": str(parsed.port) if parsed.port else None,
        "PGUSER": parsed.username,
        "PGPASSWORD": parsed.password,
        "PGDATABASE": parsed.database,
        **{
            _VARIABLES[name]: str(value)
            for name, value in parsed.query.items()
            if name in _VARIABLES
        },
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return (
        kept
        | {name: value for name, value in given.items() if value}
        | {
            "PGAPPNAME": "migration",
            "LC_ALL": "C",
        }
    )
