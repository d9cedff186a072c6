"""What happened in all runs: what operators did, how runs moved, which batches failed."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Engine

from models.ledger.tables import events
from models.postgres.database import transaction

MOST = 200


def read(engine: Engine, limit: int = MOST) -> list[dict[str, Any]]:
    """The newest events of all runs, newest first; those of a batch stay when it is retried."""
    with transaction(engine) as connection:
        found = connection.execute(sa.select(events).order_by(events.c.id.desc()).limit(limit))
        return [{**row._mapping, "at": row.at.isoformat(timespec="seconds")} for row in found]


def of_runs(runs: Iterable[dict[str, Any]]) -> list[str]:
    """Runs as `status.history` returns them, a line each that 80 columns hold."""
    said = []
    for row in runs:
        ended = f"{_moment(row['finished_at']):%m-%d %H:%M:%S}Z" if row["finished_at"] else "open"
        started = f"{_moment(row['created_at']):%m-%d %H:%M:%S}Z"
        said.append(f"{row['run_id']:20}  {row['state']:25}  {started} to {ended}")
    return said


def lines(actions: Iterable[dict[str, Any]], happened: Iterable[dict[str, Any]]) -> list[str]:
    """Both as text, newest first, a line each. Ends of stages are left to the report."""
    told = [(_moment(row["at"]), row["run_id"], _action(row)) for row in actions]
    told += [
        (_moment(row["at"]), row["run_id"], what(row)) for row in happened if row["kind"] != "stage"
    ]
    told.sort(key=lambda row: row[0], reverse=True)
    return [f"{at:%m-%d %H:%M:%S}Z  {run_id or '':20}  {said}" for at, run_id, said in told]


def what(event: Any) -> str:
    """An event as words; the row of the ledger, or as `read` returns it."""
    row = event if isinstance(event, dict) else event._mapping
    if row["kind"] == "batch":
        return f"{row['stage']}: batch {row['batch_id']} failed: {row['note']}"
    if row["kind"] == "stage":
        return f"{row['stage']} {row['state']} after {float(row['note'] or 0):,.1f} s"
    if row["kind"] == "stuck":
        return f"needs a human: {row['note']}"
    return f"is {row['state']}" + (f": {row['note']}" if row["note"] else "")


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _action(row: dict[str, Any]) -> str:
    """Who did what from where; the states before and after, where there are any."""
    states = [
        found["state"]
        for found in (row["before"], row["after"])
        if isinstance(found, dict) and "state" in found
    ]
    said = f"{row['action']} by {row['actor']} ({row['origin']})"
    return f"{said}: {' → '.join(states)}" if states else said
