"""A backup before the migration: database, Redis, configuration, and a manifest that proves them.

It is written beside its place and takes its name when it is complete: whatever carries the name can
be restored. The dump and the hashes of all tables come from one snapshot.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, text

from models.errors import Misconfigured
from models.ledger import audit
from models.ledger.tables import SCHEMA, runs
from models.postgres import sessions
from models.postgres.catalog import quote
from models.postgres.database import check_reachable, transaction
from models.reports.words import number
from producer.backup import clients, configuration, keyspace, restorable

MANIFEST, SUMS, DATABASE, REDIS, CONFIG = (
    "manifest.json", "SHA256SUMS", "database", "redis.jsonl", "config",
)  # fmt: skip
FORMAT = 2
JOBS = 2
Say = Callable[[str], None]

_TABLES = text("""
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
  AND NOT EXISTS (SELECT FROM pg_depend d
    WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY n.nspname, c.relname
""")
_SEQUENCES = text("""
SELECT schemaname, sequencename FROM pg_sequences ORDER BY schemaname, sequencename
""")
# How a row is written as text must not depend on the session.
_SNAPSHOT = "ISOLATION LEVEL REPEATABLE READ, READ ONLY"


def make(
    engine: Engine,
    database_url: str,
    redis_urls: dict[str, str],
    folder: Path,
    config: Path | None,
    say: Say,
    *,
    all_redis: bool = False,
) -> dict[str, Any]:
    """Write a backup to a folder that is not there yet, or empty; returns its manifest.

    Saves the Redis databases that the settings name, with `all_redis` all of those servers. Raises
    Misconfigured for a folder that holds something, for a configuration that cannot be copied, or
    without a fitting pg_dump, and NotRestorable where the role could not put the database back.
    """
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Misconfigured(f"{folder} is not empty", hint="Name a folder that does not exist yet.")
    if config is not None:
        configuration.require(config)
    programs = clients.find(check_reachable(engine))
    with _unfinished(folder) as place:
        manifest: dict[str, Any] = {"format": FORMAT, "created_at": _now(), "run": _run(engine)}
        say("Dumping the database")
        manifest |= _dump_database(engine, database_url, place, programs)
        manifest |= _save_redis(redis_urls, place / REDIS, all_redis, say)
        if config is not None:
            say(f"Copying {config}")
            manifest["config"] = str(config.absolute())
            manifest["config_modes"] = configuration.save(config, place / CONFIG)
        say("Writing the manifest")
        manifest["redis_version"] = keyspace.version(redis_urls["redis"])
        manifest["bytes"] = {
            path.relative_to(place).as_posix(): path.stat().st_size
            for path in place.rglob("*")
            if path.is_file()
        }
        (place / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
        _close(place)
        (place / SUMS).write_text(
            "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes(place).items()))
        )
        _close(place)
        if folder.exists():
            folder.rmdir()
        place.rename(folder)
    if manifest["run"]:
        with transaction(engine) as connection:
            audit.note(connection, "backup", manifest["run"]["id"], after={"folder": folder.name})
    return manifest


@contextmanager
def _unfinished(folder: Path) -> Iterator[Path]:
    """A folder beside the one that is wanted, for its owner only; it goes if the backup fails.

    Each has a name of its own: the pg_dump of a backup that was killed goes on for a while, and
    would write into whatever has the name that it was given.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{folder.name}.unfinished-"
    for old in folder.parent.glob(f"{glob.escape(prefix)}*"):
        shutil.rmtree(old, ignore_errors=True)
    before = os.umask(0o077)
    place = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        yield place
    finally:
        os.umask(before)
        shutil.rmtree(place, ignore_errors=True)


def _close(place: Path) -> None:
    """Readable by the owner only, whatever was copied, and on the disk."""
    for path in (place, *place.rglob("*")):
        if path.is_symlink():
            continue
        path.chmod(0o700 if path.is_dir() else 0o600)
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _run(engine: Engine) -> dict[str, str] | None:
    """The newest run and its state, if there is any."""
    with transaction(engine) as connection:
        if not connection.scalar(sa.select(sa.func.to_regclass(f"{SCHEMA}.runs"))):
            return None
        newest = connection.execute(
            sa.select(runs.c.id, runs.c.state).order_by(runs.c.id.desc()).limit(1)
        ).one_or_none()
        return dict(newest._mapping) if newest else None


def _dump_database(
    engine: Engine, url: str, place: Path, programs: clients.Clients
) -> dict[str, Any]:
    with engine.begin() as connection:
        sessions.begin(connection, statement_timeout_ms=0, lock_timeout_ms=0, mode=_SNAPSHOT)
        restorable.require(connection)
        snapshot = connection.scalar(text("SELECT pg_export_snapshot()"))
        found = describe(connection)
        programs.run(
            "pg_dump", "--format=directory", f"--jobs={JOBS}", f"--snapshot={snapshot}",
            f"--file={place / DATABASE}", "--no-password", url=url,
        )  # fmt: skip
        server = connection.scalar(text("SHOW server_version"))
    return {**found, "server_version": server, "client_version": programs.major}


def _save_redis(urls: dict[str, str], path: Path, all_redis: bool, say: Say) -> dict[str, Any]:
    """Save the keys; a database is known by a number of its own and by who of the settings uses it.

    One that no setting names is known by the setting whose server it is on.
    """
    sources = {
        str(n): place
        for n, place in enumerate(keyspace.places(urls, whole_servers=all_redis), start=1)
    }
    for place in sources.values():
        say(f"Saving {number(place.keys(), 'key')} of {place}")
    digests = keyspace.save(sources, path)
    databases = {
        name: {
            "server": keyspace.server_of(place.url),
            "server_of": next(role for role, url in urls.items() if url == place.url),
            "database": place.number,
            "roles": list(place.roles),
            "keys": len(digests[name]),
        }
        for name, place in sources.items()
    }
    return {"redis": digests, "redis_databases": databases, "all_redis_databases": all_redis}


def describe(connection: Connection) -> dict[str, Any]:
    """Rows and a hash of each table, and where each sequence stands, as the transaction sees it."""
    # The names that values of the type regclass are written with.
    connection.exec_driver_sql("SET LOCAL search_path = pg_catalog")
    tables = {}
    for schema, name in connection.execute(_TABLES).all():
        table = f"{quote(schema)}.{quote(name)}"
        rows, digest = connection.exec_driver_sql(
            f"SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0)"
            f" FROM {_literal(table)} t"
        ).one()
        tables[f"{schema}.{name}"] = {"rows": rows, "hash": str(digest)}
    sequences = {}
    for schema, name in connection.execute(_SEQUENCES).all():
        value = connection.exec_driver_sql(
            f"SELECT last_value::text || is_called::text "
            f"FROM {_literal(f'{quote(schema)}.{quote(name)}')}"
        ).scalar()
        sequences[f"{schema}.{name}"] = value
    return {"tables": tables, "sequences": sequences}


def _literal(name: str) -> str:
    """A quoted name as the driver takes it: it looks for parameters after percent signs."""
    return name.replace("%", "%%")


def hashes(place: Path) -> dict[str, str]:
    """The SHA-256 of each file of a backup but the list of them itself, by its path inside."""
    found = {}
    for path in sorted(place.rglob("*")):
        if path.is_file() and path != place / SUMS:
            with path.open("rb") as file:
                found[path.relative_to(place).as_posix()] = hashlib.file_digest(
                    file, "sha256"
                ).hexdigest()
    return found
