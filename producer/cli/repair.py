"""Fixes for what was damaged after a migration."""

from __future__ import annotations

from typing import Any

import click

from producer.cli.asking import open_ledger
from producer.cli.command import command, repair, results

_REPAIRED: dict[str, Any] = {
    "changed": 0,
    "changes": [],
    "left_alone": [],
    "dry_run": False,
    "note": "",
}


USER = click.option("--user", metavar="ID", help="Only this user; all by default.")


DRY_RUN = click.option("--dry-run", is_flag=True, help="Show each change, and make none.")


@command(repair, "missing-data", blank=_REPAIRED)
@USER
@DRY_RUN
def repair_missing_data(user: str | None, dry_run: bool) -> Any:
    """Fill in the type, tier and activity of migrated users where they are null."""
    return _repair("missing-data", user, dry_run)


@command(repair, "tools", blank=_REPAIRED)
@USER
@DRY_RUN
def repair_tools(user: str | None, dry_run: bool) -> Any:
    """Create what migrated subscriptions and projects lack: tools, assignments, usage logs."""
    return _repair("tools", user, dry_run)


@command(repair, "credits", blank=_REPAIRED)
@USER
@DRY_RUN
@click.option("--force", is_flag=True, help="Also users who were charged without a log row.")
def repair_credits(user: str | None, dry_run: bool, force: bool) -> Any:
    """Set migrated users' balances to what the credit log gives; the audit keeps the old ones."""
    return _repair("credits", user, dry_run, force)


def _repair(what: str, user: str | None, dry_run: bool, force: bool = False) -> Any:
    from models.reports.words import number
    from producer import connect
    from producer import repair as repairing
    from producer.reports import status as report
    from producer.reports import terminal as output

    engine, settings = open_ledger(), connect.settings().base
    found = repairing.run(engine, settings, what, key=user, dry_run=dry_run, force=force)
    output.rows(results, found["changes"][:100], found["note"] or "Nothing to repair.")
    if found["changed"]:
        done = "would be made" if dry_run else "made"
        results.print(
            f"{number(found['changed'], 'change')} {done}"
            + ("; --json shows more" if found["changed"] > 100 else "")
        )
        if not dry_run and report.look(engine, None).state == "failed":
            results.print("Then let the run verify everything again: producer retry --wait")
    if found["left_alone"]:
        output.rows(results, found["left_alone"], "")
        results.print(
            "Left alone: these users were charged for usage without a log row, which the log's sum"
            " would give back. Correct them all the same: producer repair credits --force"
        )
    return {**found, "error": None}, 3 if found["left_alone"] else 0
