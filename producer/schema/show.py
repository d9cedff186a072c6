"""What `schema show` says: the tables as found, and every obstacle with what fixes it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine

from models.engine import current
from models.engine.schema import additions
from models.errors import Misconfigured
from models.postgres.database import transaction
from models.preflight import examine
from models.preflight.examine import Preflight
from models.settings import Settings


def describe(engine: Engine, settings: Settings) -> dict[str, Any]:
    """The source tables, each target table with its state, and all that is in the way of a run."""
    with transaction(engine) as connection:
        found = examine.examine(connection, settings, reads_values=False)
        return {
            "schema": found.target.schema if found.target else None,
            "legacy": _legacy(found),
            "target": _target(found),
            "obstacles": [
                {"what": each.what, "fix": each.hint, "is_fatal": each.is_fatal}
                for each in found.obstacles
            ],
            "advice": current.migration().advice(connection, settings) if found.fatal else "",
        }


def draft(engine: Engine, settings: Settings) -> str:
    """A first mapping file; raises Misconfigured where the migration reads none."""

    def written(connection: Connection) -> str:
        return current.migration().draft_mapping(connection, settings)

    with transaction(engine) as connection:
        if not (text := written(connection)):
            raise Misconfigured(
                f"The migration {current.migration().name} reads no mapping",
                hint="Name its tables in its sources and its schema.",
            )
        return text


def _legacy(found: Preflight) -> dict[str, dict[str, str]]:
    tables = found.sources.by_plural if found.sources else {}
    return {
        name: {"table": table.label, "key": table.key.type}
        for name, table in tables.items()
        if table.source.key in table.columns
    }


def _target(found: Preflight) -> dict[str, dict[str, Any]]:
    if found.sources is None or found.target is None or not found.has_keys:
        return {}
    schema, there = current.migration().schema, found.target.tables
    described = {}
    for declared in schema.declare(found.sources).tables.values():
        table = there.get(declared.name)
        if table is None:
            missing = []
        elif declared.name in found.sources.by_plural:
            missing = [each.name for each in declared.columns if each.name not in table.columns]
        else:
            missing = [each.name for each in additions.lacking(schema, declared, table)]
        described[declared.name] = {"exists": table is not None, "missing_columns": missing}
    return described
