"""Backup and restore."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from producer.cli.asking import confirm, open_engine
from producer.cli.command import cli, command, console, results

ALL_REDIS = click.option(
    "--all-redis-databases",
    "all_redis",
    is_flag=True,
    help="All databases of the Redis servers, not only those that the settings name.",
)


@command(cli, "backup", blank={"folder": None, "manifest": None, "configuration": None})
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--config",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The folder of the dashboard's configuration files; ./config if it exists.",
)
@ALL_REDIS
def backup(folder: Path, config: Path | None, all_redis: bool) -> Any:
    """Save database, Redis and configuration files to a new folder, with checksums."""
    from producer import connect
    from producer.backup import create as saving

    started = time.monotonic()
    engine, settings = open_engine(), connect.settings()
    if config is None and Path("config").is_dir():
        config = Path("config")
    manifest = saving.make(
        engine,
        settings.database_url,
        settings.redis_urls,
        folder,
        config,
        console.print,
        all_redis=all_redis,
    )
    place = str(config.absolute()) if config else None
    saved = f"Configuration files: {place}" if place else "No configuration was saved: see --config"
    size = sum(manifest["bytes"].values()) / 1_000_000
    results.print(
        f"{folder} is complete: {size:,.1f} MB in {time.monotonic() - started:.1f} s. {saved}."
        f" Restore it: producer restore {folder}",
        soft_wrap=True,
        markup=False,
    )
    return {
        "folder": str(folder.absolute()),
        "manifest": manifest,
        "configuration": place,
        "error": None,
    }


@command(cli, "restore", blank={"folder": None, "manifest": None})
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--yes", is_flag=True, help="Do not ask before something is replaced.")
@ALL_REDIS
def restore(folder: Path, yes: bool, all_redis: bool) -> Any:
    """Verify a backup, restore it, and compare the result with it."""
    from producer import connect
    from producer.backup import restore as restoring

    engine, settings = connect.engine(), connect.settings()
    plan = restoring.plan(engine, settings.redis_urls, folder, all_redis=all_redis)
    if "config" in plan.manifest and Path(plan.manifest["config"]).exists():
        plan.replaced.append(f"the files in {plan.manifest['config']}")
    if plan.replaced:
        confirm(f"Replace {'; '.join(plan.replaced)}?", yes)
    manifest = restoring.put_back(engine, settings.database_url, plan, folder, console.print)
    results.print("Restored, and equal to the backup row by row and key by key.")
    return {"folder": str(folder.absolute()), "manifest": manifest, "error": None}
