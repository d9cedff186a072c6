"""Putting a backup back: verified first, then the database in one transaction, then proven."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, text

from models import sessions
from models.catalog import quote
from models.database import check_reachable, transaction
from models.errors import MigrationError, Misconfigured
from producer import clients, keyspace
from producer.backup import CONFIG, DATABASE, FORMAT, MANIFEST, REDIS, SUMS, Say, describe, hashes

_SCHEMAS = text("""
SELECT nspname FROM pg_namespace
WHERE nspname <> 'information_schema' AND nspname !~ '^pg_' ORDER BY nspname
""")
_TABLES = text("""
SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND n.nspname <> 'information_schema'
  AND n.nspname !~ '^pg_'
""")


class Damaged(MigrationError):
    """A backup is not as it was written. Nothing was touched."""

    kind = "damaged_backup"


class NotProven(MigrationError):
    """What was restored is not what the backup holds."""

    kind = "not_proven"


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of a backup of which every file is as it was written; raises Damaged."""
    if not (folder / SUMS).is_file():
        raise Misconfigured(
            f"{folder} is no backup, or one that was never finished",
            hint="Name the folder that producer backup wrote.",
        )
    wanted: dict[str, str] = {}
    *lines, end = (folder / SUMS).read_bytes().decode(errors="replace").split("\n")
    if end:
        raise _damaged(SUMS)
    for line in lines:
        digest, separator, name = line.partition("  ")
        if not separator:
            raise _damaged(SUMS)
        wanted[name] = digest
    found = hashes(folder)
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise _damaged(name)
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    if manifest["format"] != FORMAT:
        raise Misconfigured(
            f"{folder} has the format {manifest['format']}, which is not known here"
        )
    return manifest


def _damaged(name: str) -> Damaged:
    return Damaged(
        f"{name} of the backup is missing, foreign, or not as it was written",
        hint="Take another copy of the backup. Nothing was touched.",
    )


def what_is_there(engine: Engine, redis_url: str) -> str:
    """What a restore would replace, in words; '' where database and Redis are empty."""
    check_reachable(engine)
    with transaction(engine) as connection:
        tables = int(connection.scalar(_TABLES) or 0)
    numbers = keyspace.databases(redis_url)
    parts = [f"{tables:,} tables and the like"] if tables else []
    parts += [f"the keys of Redis database {', '.join(map(str, numbers))}"] if numbers else []
    return " and ".join(parts)


def put_back(
    engine: Engine, database_url: str, redis_url: str, folder: Path, say: Say
) -> dict[str, Any]:
    """Replace database, Redis and configuration by a verified backup's; returns its manifest.

    The database changes at once or not at all; a run after a failure begins anew.
    """
    manifest = verify(folder)
    programs = clients.find(check_reachable(engine))
    say("Restoring the database")
    with transaction(engine) as connection:
        script = _emptying(connection)
    engine.dispose()
    with tempfile.TemporaryDirectory() as temporary:
        emptying, dump = Path(temporary) / "empty.sql", Path(temporary) / "dump.sql"
        emptying.write_text(script)
        programs.run("pg_restore", f"--file={dump}", str(folder / DATABASE), url=database_url)
        programs.run(
            "psql", "--no-psqlrc", "--quiet", "--single-transaction", "--set=ON_ERROR_STOP=1",
            "--no-password", f"--file={emptying}", f"--file={dump}", url=database_url,
        )  # fmt: skip
    say("Restoring the keys of Redis")
    lasting = keyspace.load(redis_url, folder / REDIS)
    if "config" in manifest:
        say(f"Restoring {manifest['config']}")
        shutil.copytree(folder / CONFIG, manifest["config"], dirs_exist_ok=True)
    say("Proving it")
    _prove(engine, redis_url, manifest, lasting)
    return manifest


def _emptying(connection: Connection) -> str:
    """SQL that leaves nothing but an empty schema `public`, as a new database has it."""
    version = int(connection.scalar(text("SHOW server_version_num")) or 0)
    owner = " AUTHORIZATION pg_database_owner" if version >= 140000 else ""
    granted = "USAGE" if version >= 150000 else "ALL"
    names = connection.scalars(_SCHEMAS).all()
    return "\n".join(
        [
            "SET lock_timeout = '10s';",
            *(f"DROP SCHEMA IF EXISTS {quote(name)} CASCADE;" for name in names),
            f"CREATE SCHEMA public{owner};",
            f"GRANT {granted} ON SCHEMA public TO PUBLIC;",
        ]
    )


def _prove(
    engine: Engine, redis_url: str, manifest: dict[str, Any], lasting: dict[str, set[str]]
) -> None:
    with engine.begin() as connection:
        sessions.begin(connection, statement_timeout_ms=0, lock_timeout_ms=0)
        found = describe(connection)
    wrong = [
        f"{kind[:-1]} {name}"
        for kind in ("tables", "sequences")
        for name in sorted(manifest[kind].keys() | found[kind].keys())
        if manifest[kind].get(name) != found[kind].get(name)
    ]
    keys = keyspace.digests(redis_url)
    # What expired since is rightly gone.
    for number in sorted(keys.keys() | lasting.keys()):
        there, wanted = keys.get(number, {}), manifest["redis"].get(number, {})
        differs = {key for key in there if there[key] != wanted.get(key)}
        missing = lasting.get(number, set()) - there.keys()
        wrong += [f"a key of Redis database {number}"] * len(differs | missing)
    if wrong:
        raise NotProven(
            f"{len(wrong)} differ from the backup: {', '.join(wrong[:5])}",
            hint="Does an application write to them? Stop it, and restore again.",
        )
