"""The target schema and the ledger."""

from __future__ import annotations

from typing import Any

import click

from producer.cli.asking import confirm, open_engine, open_ledger
from producer.cli.command import command, results, schema


@command(schema, "upgrade", blank={"added": []})
def upgrade() -> Any:
    """Add the ledger and what the target schema lacks."""
    from producer import connect
    from producer.schema import upgrade as schema_step

    added = schema_step.upgrade(open_engine(), connect.settings().base)
    for kind, table, name in added:
        results.print(f"added {kind} {name}" + (f" on {table}" if table not in ("", name) else ""))
    if not added:
        results.print("The schema is up to date.")
    return {"added": [{"kind": k, "table": t, "name": n} for k, t, n in added], "error": None}


@command(schema, "downgrade", blank={"dropped": [], "lost": {}})
@click.option("--yes", is_flag=True, help="Do not ask.")
def downgrade(yes: bool) -> Any:
    """Drop what upgrade and runs added, after a rollback; say first what would be lost."""
    from models.reports.words import number
    from producer import connect
    from producer.reports import terminal as output
    from producer.schema import downgrade as dropping

    engine, settings = open_ledger(), connect.settings().base
    lost = dropping.would_lose(engine, settings)
    full = [{"would be lost": name, "rows": count} for name, count in lost.items() if count]
    output.rows(results, full, "Nothing would be lost.")
    confirm("Drop the target schema and the ledger, with what is listed above?", yes)
    dropped = dropping.downgrade(engine, settings)
    results.print(
        f"{number(len(dropped), 'object')} dropped" if dropped else "There was nothing to drop."
    )
    return {
        "dropped": [{"kind": k, "table": t, "name": n} for k, t, n in dropped],
        "lost": lost,
        "error": None,
    }


_BLANK: dict[str, Any] = {
    "schema": None,
    "legacy": {},
    "target": {},
    "obstacles": [],
    "advice": "",
    "mapping": "",
}


@command(schema, "show", blank=_BLANK)
@click.option("--mapping", is_flag=True, help="Print a first mapping file for these tables.")
def show_schema(mapping: bool) -> Any:
    """Show the legacy tables, which target tables exist, and all that is in the way."""
    from producer import connect
    from producer.reports import terminal as output
    from producer.schema import show

    engine, settings = open_engine(), connect.settings().base
    if mapping:
        text = show.draft(engine, settings)
        results.out(text, end="", highlight=False)
        return {**_BLANK, "mapping": text, "error": None}
    found = show.describe(engine, settings)
    output.schema(results, found)
    return {**_BLANK, **found, "error": None}
