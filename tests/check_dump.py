"""Migrate a plain-format dump of a legacy database and compare the end with what is right.

    python -m tests.check_dump DUMP.sql.gz [--expected COUNTS.json] [--variant NAME ...] [--old]

Starts embedded servers of its own and two worker processes, loads the dump (turned into each
variant), runs the real command, and compares every target row with the naive oracle and the counts
with the file. Then it fixes, accepts or deletes what was quarantined and retries to a clean end.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import redis
from sqlalchemy import text

from models.engine.source import NONE
from models.postgres import database as databases
from models.settings import DEFAULT_GRANTS, parse_grants
from producer import embedded
from producer.embedded import directories, postgres, programs
from tests import oracle, variants
from tests.acceptance.conftest import Product
from tests.conftest import fresh_database
from tests.dump import load_dump

GRANTS = parse_grants(DEFAULT_GRANTS)


def main() -> None:
    """Check every variant asked for; the exit status is the number of those that failed."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("dump", type=Path)
    arguments.add_argument("--expected", type=Path, help="the counts, for the dump as it is")
    arguments.add_argument("--variant", nargs="*", default=["plain"])
    arguments.add_argument("--old", action="store_true", help="on PostgreSQL 15")
    given = arguments.parse_args()
    wanted = json.loads(given.expected.read_text()) if given.expected else None
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        servers = embedded.start(home)
        old = Path(folder) / "old"
        try:
            address = _old_postgres(old) if given.old else servers.database_url
            for variant in variants.VARIANTS:
                if variant.name in given.variant or "all" in given.variant:
                    with fresh_database(address) as url:
                        failed += not _check(
                            given.dump, variant, url, servers.redis_url, Path(folder), wanted
                        )
        finally:
            embedded.erase(home)
            embedded.erase(old)
    sys.exit(failed)


def _check(
    dump: Path, variant: variants.Variant, url: str, redis_url: str, folder: Path, wanted: Any
) -> bool:
    load_dump(url, dump)
    with closing(redis.Redis.from_url(redis_url)) as client:
        client.flushall()
    engine = databases.create(url)
    environment = variant.environment | {
        "DATABASE_URL": url,
        "REDIS_URL": redis_url,
        "MIGRATION_HOME": str(folder),
    }
    product = Product(environment, folder, engine)
    with engine.begin() as connection:
        if variant.script:
            # The scripts read numbers in the keys, and know an orphan's owner by this name.
            for child in ("gpt_subscriptions", "projects"):
                connection.exec_driver_sql(
                    f"UPDATE {child} SET user_id = 'usr_000000000_deleted'"
                    " WHERE user_id NOT IN (SELECT id FROM users)"
                )
            connection.exec_driver_sql(variant.script)
        before = oracle.snapshot(connection, variant.names)
        version = connection.scalar(text("SHOW server_version"))
    with product.worker():
        ended = product.run("enqueue-all", "--wait", "--json")
        expectation = oracle.expected(before, GRANTS)
        with engine.connect() as connection:
            differences = oracle.compare(connection, before, expectation)
        found = _counts(product, ended.json, len(before.rows("marketplace_listings")))
        right = oracle.counts(before, expectation)
        # Twice: a subscription that came with its owner may turn out to be bad itself.
        for _ in range(2):
            _fix(product, variant)
            clean = product.run("retry", "--wait", "--json")
    engine.dispose()
    checks = {
        "exit status 3": ended.status == 3,
        "0 differences": ended.json["verification"]["differences"] == 0,
        "0 discrepancies": ended.json["reconciliation"]["discrepancies"] == 0,
        "every row as the oracle says": not differences,
        "counts as the oracle says": all(found[name] == right[name] for name in found),
        "exit status 0 after fixing": (clean.status, clean.json["state"]) == (0, "completed"),
    }
    if wanted and variant is variants.PLAIN:
        checks["counts as expected"] = found == wanted
    print(f"{variant.name} on PostgreSQL {version}: {ended.json['seconds']:.1f} s", flush=True)
    for what, holds in checks.items():
        print(f"  {'ok ' if holds else 'NOT'} {what}")
    for name in found:
        if found[name] != right[name]:
            print(f"      {name}: found {found[name]}, right {right[name]}")
    for difference in differences[:10]:
        print(f"      {difference}")
    return all(checks.values())


def _counts(product: Product, report: dict[str, Any], listings: int) -> dict[str, Any]:
    """The report's counts, and from the tables those that it lacks; `listings` were there."""
    users, projects = (
        product.environment[f"MIGRATION_{name}_TABLE"] for name in ("USERS", "PROJECTS")
    )
    with product.engine.connect() as connection:

        def scalar(query: str) -> int:
            return int(connection.scalar(text(query)) or 0)

        types = connection.execute(
            text(
                f"SELECT user_type::text AS name, count(*) AS n FROM {users} u WHERE NOT EXISTS"
                " (SELECT FROM migration.quarantine q WHERE q.entity = 'user'"
                " AND q.legacy_key = u.id::text) GROUP BY 1"
            )
        )
        return {
            "users": report["users"],
            "subscriptions": report["subscriptions"],
            "projects": report["projects"]
            | {
                "with_active_gpt": scalar(
                    f"SELECT count(*) FROM {projects} p JOIN ai_tools t ON t.id = p.active_gpt_id"
                    " WHERE t.configuration ->> 'project_id' = p.id::text AND t.id LIKE 'p%'"
                )
                if projects != NONE
                else 0
            },
            "user_types": {row.name: row.n for row in types},
            "rows": report["rows"]
            | {
                "organizations": scalar(
                    "SELECT count(*) FROM organizations WHERE name = 'Default Organization'"
                ),
                "departments": scalar(
                    "SELECT count(*) FROM departments d JOIN organizations o"
                    " ON o.id = d.organization_id WHERE d.name = 'General'"
                    " AND o.name = 'Default Organization'"
                ),
                "marketplace_listings": scalar("SELECT count(*) FROM marketplace_listings")
                - listings,
            },
            "credits_granted": report["credits_granted"],
        }


def _fix(product: Product, variant: variants.Variant) -> None:
    """Fix users, delete subscriptions that cannot be fixed, accept the rest."""
    names = variant.names
    with product.engine.begin() as connection:
        keys = "SELECT legacy_key FROM migration.quarantine WHERE entity = '{}' AND reason {}"
        for table, change, entity, reason in (
            (names.users, "UPDATE {} SET email = id::text || '@fixed.example'", "user", "<> ''"),
            (names.subscriptions, "DELETE FROM {}", "subscription", "<> 'owner_quarantined'"),
        ):
            if table == NONE:
                continue
            condition = keys.format(entity, reason)
            connection.execute(text(f"{change.format(table)} WHERE id::text IN ({condition})"))
    accepted = [
        f"{row['entity']}:{row['key']}"
        for row in product.run("quarantine", "--json").json["rows"]
        if row["reason"] == "owner_missing" and row["entity"] == "project"
    ]
    if accepted:
        product.run("quarantine", "--accept", *accepted)


def _old_postgres(home: Path) -> str:
    with directories.locked(home):
        place = directories.prepare(home)
        postgres.run_postgres(programs.postgres_bin_dir("pgserver"), place)
    return f"postgresql://postgres@/dashboard?host={place.sockets}"


if __name__ == "__main__":
    main()
