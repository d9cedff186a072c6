"""Putting a backup back: verified first, then the database in one transaction, then proven."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

from models.errors import MigrationError, Misconfigured
from models.postgres import sessions
from models.postgres.catalog import quote
from models.postgres.database import check_reachable, transaction
from models.reports.words import number
from producer.backup import clients, configuration, keyspace
from producer.backup.create import (
    CONFIG,
    DATABASE,
    FORMAT,
    MANIFEST,
    REDIS,
    SUMS,
    Say,
    describe,
    hashes,
)
from producer.backup.emptying import prepare
from producer.backup.keyspace import Place

_TABLES = text("""
SELECT n.nspname, c.relname, greatest(c.reltuples, 0), pg_relation_size(c.oid)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
  AND has_table_privilege(c.oid, 'SELECT') AND NOT EXISTS (SELECT FROM pg_depend d
    WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
""")
COUNTED_BYTES = 100_000_000
MOST_TABLES = 8


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
            f"{folder} is not a backup, or one that was never finished",
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
    if manifest["format"] == 1:
        manifest |= {
            "all_redis_databases": True,
            "redis_databases": {
                number: {"server_of": None, "database": int(number), "roles": [], "keys": len(keys)}
                for number, keys in manifest["redis"].items()
            },
        }
    elif manifest["format"] != FORMAT:
        raise Misconfigured(
            f"{folder} has the format {manifest['format']}, which is not known here"
        )
    return manifest


def _damaged(name: str) -> Damaged:
    return Damaged(
        f"{name} of the backup is missing, foreign, or not as it was written",
        hint="Take another copy of the backup. Nothing was touched.",
    )


@dataclass(frozen=True)
class Plan:
    """What a restore would do to Redis, and what it would replace, in words."""

    manifest: dict[str, Any]
    targets: dict[str, Place]
    """Where the keys of each database of the backup go."""
    emptied: list[Place]
    left_out: list[str]
    replaced: list[str]


def plan(
    engine: Engine, redis_urls: dict[str, str], folder: Path, *, all_redis: bool = False
) -> Plan:
    """Verify a backup and see what it would replace; only databases that the settings name.

    With `all_redis`, and a backup of whole servers, all databases of the servers.
    """
    manifest = verify(folder)
    check_reachable(engine)
    whole = all_redis and manifest["all_redis_databases"]
    there = keyspace.places(redis_urls, whole_servers=whole)
    named = [place for place in there if place.roles]
    targets, left_out = {}, []
    for name, saved in manifest["redis_databases"].items():
        target = _target(saved, named, redis_urls if whole else {})
        if target:
            targets[name] = next((place for place in there if place.is_same(target)), target)
        else:
            left_out.append(f"{number(saved['keys'], 'key')} of Redis database {saved['database']}")
    emptied = list(dict.fromkeys([*there, *targets.values()]))
    replaced = _tables(engine)
    replaced += [f"{number(keys, 'key')} of {place}" for place in emptied if (keys := place.keys())]
    return Plan(manifest, targets, emptied, left_out, replaced)


def _target(saved: dict[str, Any], named: list[Place], servers: dict[str, str]) -> Place | None:
    """The database of today for a saved one: of the same use, or of the same number."""
    number, roles = saved["database"], saved["roles"]
    if roles:
        role = "broker" if "broker" in roles else roles[0]
        return next(place for place in named if role in place.roles)
    same = next((place for place in named if place.number == number), None)
    if saved["server_of"] is None and same:
        # Version 0.1 saved whole servers, and did not say which database the settings named.
        return same
    url = servers.get(saved["server_of"] or "redis")
    return Place(url, number) if url and not same else None


def _tables(engine: Engine) -> list[str]:
    """The tables and their rows, the largest first; a large one's rows are an estimate."""
    with transaction(engine, statement_timeout_ms=0) as connection:
        found = []
        for schema, name, estimate, size in connection.execute(_TABLES).all():
            rows, about = int(estimate), "about "
            if size < COUNTED_BYTES:
                table = f"{quote(schema)}.{quote(name)}".replace("%", "%%")
                rows = int(
                    connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar() or 0
                )
                about = ""
            found.append((rows, f"{schema}.{name} ({about}{number(rows, 'row')})"))
    found.sort(key=lambda each: -each[0])
    more = found[MOST_TABLES:]
    said = [each for _, each in found[:MOST_TABLES]]
    said += (
        [f"{number(len(more), 'more table')} ({number(sum(rows for rows, _ in more), 'row')})"]
        if more
        else []
    )
    return [f"the tables {', '.join(said)}"] if said else []


def put_back(
    engine: Engine, database_url: str, plan: Plan, folder: Path, say: Say
) -> dict[str, Any]:
    """Replace database, Redis and configuration by a verified backup's; returns its manifest.

    The database changes at once or not at all; a run after a failure begins anew.
    """
    manifest = plan.manifest
    programs = clients.find(check_reachable(engine))
    say("Restoring the database")
    with tempfile.TemporaryDirectory() as temporary:
        places = [Path(temporary) / name for name in ("listed", "chosen", "empty.sql", "dump.sql")]
        listed, chosen, emptying, dump = places
        programs.run(
            "pg_restore", "--list", f"--file={listed}", str(folder / DATABASE), url=database_url
        )
        with transaction(engine) as connection:
            script, entries = prepare(connection, listed.read_text().splitlines())
        engine.dispose()
        emptying.write_text(script)
        chosen.write_text("\n".join(entries))
        programs.run(
            "pg_restore", f"--use-list={chosen}", f"--file={dump}", str(folder / DATABASE),
            url=database_url,
        )  # fmt: skip
        programs.run(
            "psql", "--no-psqlrc", "--quiet", "--single-transaction", "--set=ON_ERROR_STOP=1",
            "--no-password", f"--file={emptying}", f"--file={dump}", url=database_url,
        )  # fmt: skip
    for place in plan.emptied:
        say(f"Restoring the keys of {place}")
    for left_out in plan.left_out:
        say(f"Left out, since the settings do not name it: {left_out}")
    lasting = keyspace.load(folder / REDIS, plan.targets, plan.emptied)
    if "config" in manifest:
        say(f"Restoring {manifest['config']}")
        modes = manifest.get("config_modes", {})
        configuration.put_back(folder / CONFIG, Path(manifest["config"]), modes)
    say("Proving it")
    _prove(engine, plan, lasting)
    return manifest


def _prove(engine: Engine, plan: Plan, lasting: dict[Place, set[str]]) -> None:
    manifest = plan.manifest
    with engine.begin() as connection:
        sessions.begin(connection, statement_timeout_ms=0, lock_timeout_ms=0)
        found = describe(connection)
    wrong = [
        f"{kind[:-1]} {name}"
        for kind in ("tables", "sequences")
        for name in sorted(manifest[kind].keys() | found[kind].keys())
        if manifest[kind].get(name) != found[kind].get(name)
    ]
    # What expired since is rightly gone.
    for place in plan.emptied:
        wanted: dict[str, str] = {}
        for name, target in plan.targets.items():
            if target == place:
                wanted |= manifest["redis"][name]
        there = keyspace.digests(place)
        differs = {key for key in there if there[key] != wanted.get(key)}
        missing = lasting.get(place, set()) - there.keys()
        wrong += [f"a key of {place}"] * len(differs | missing)
    if wrong:
        raise NotProven(
            f"{len(wrong)} differ from the backup: {', '.join(wrong[:5])}",
            hint="Does an application write to them? Stop it, and restore again.",
        )
