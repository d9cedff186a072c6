"""What `check` says of this migration's rows: those that will be quarantined, unknown statuses."""

from __future__ import annotations

from sqlalchemy import Connection

from models.dashboard.checks.rejects import STATUSES, unknown_statuses
from models.engine.source import Sources
from models.reports.checks import Check


def statuses(connection: Connection, sources: Sources) -> Check:
    """Subscriptions with a status that the rules do not know."""
    found = unknown_statuses(connection, sources)
    known = ", ".join(STATUSES)
    if not found:
        return Check(verdict="ok", found=f"none but {known}")
    table = sources.subscriptions
    labels = table.columns["status"].enum or ()
    others = ", ".join(each for each in labels if each.strip().lower() not in STATUSES)
    return Check(
        verdict="warning",
        found=f"{found:,} rows of {table.label} have a status that is none of {known}"
        + (f": {others}" if others else ""),
        hint="Their tools are not active. Change the rows before the run where they are to be.",
    )
