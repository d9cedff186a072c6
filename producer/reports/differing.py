"""What verification and reconciliation found of a run: rows, values, and what fixes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Engine

from models.engine import current
from models.engine.checks import values
from models.engine.step import Context
from models.ledger.tables import differences
from models.postgres.database import transaction
from models.settings import Settings
from producer.reports import status

READ_MS = 600_000
COLUMNS = ("stage", "kind", "entity", "key", "table", "detail")


def read(engine: Engine, run_id: str | None, limit: int | None = None) -> list[dict[str, Any]]:
    """The differences and discrepancies of a run, in the order in which they were found.

    Their keys are COLUMNS; all of them without a `limit`.
    """
    columns = differences.c
    with transaction(engine) as connection:
        run = status.find_run(connection, run_id)
        found = connection.execute(
            sa.select(
                columns.stage,
                columns.kind,
                columns.entity,
                columns.legacy_key.label("key"),
                columns.target_table.label("table"),
                columns.detail,
            )
            .where(columns.run_id == run.id)
            .order_by(columns.id)
            .limit(limit)
        )
        return [dict(row._mapping) for row in found]


def first(engine: Engine, run_id: str | None) -> list[dict[str, Any]]:
    """The first twenty of them, without their stage."""
    found = read(engine, run_id, limit=20)
    return [{name: row[name] for name in COLUMNS[1:]} for row in found]


def fixes(found: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The command that fixes differences, by the stage that found them."""
    steps = current.migration().steps_of
    return {
        stage: "; ".join(dict.fromkeys(step.fix for step in steps(stage)))
        for stage in dict.fromkeys(row["stage"] for row in found)
    }


VALUE_COLUMNS = (*COLUMNS, *values.Values._fields)


def with_values(
    engine: Engine, settings: Settings, run_id: str | None, found: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The same rows with the target row's key, and what must be there and what is, read now.

    Their keys are VALUE_COLUMNS. The values are null where a check tells none, and where the row
    is as it must be by now. They are row data: show them only to somebody who asked for them.
    """
    read_only = "SET LOCAL transaction_read_only = on"
    with transaction(engine, statement_timeout_ms=READ_MS, also=read_only) as connection:
        run = status.find_run(connection, run_id)
        context = Context.read(connection, settings, run)
        keys: dict[str, list[str]] = {}
        for each in context.migration.retried(context, quarantined=False):
            keys.setdefault(context.migration.step(each.step).entity, []).extend(each.keys)
        now = values.read(context, keys)
    unknown = values.Values(None, None, None)
    return [
        row | now.get(values.Place(*(row[name] for name in COLUMNS[1:])), unknown)._asdict()
        for row in found
    ]
