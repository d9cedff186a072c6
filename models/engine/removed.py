"""Rule 9, the end of a quarantine: a row that no longer exists is closed as removed."""

from __future__ import annotations

from pkgutil import resolve_name

from sqlalchemy import text

from models.engine.step import Context, Counts, Scope, Step
from models.postgres.catalog import Table
from models.postgres.keys import key_cast, key_family, key_from_text

_CLOSE = """
WITH removed AS (
  UPDATE migration.quarantine q SET state = 'removed', changed_at = clock_timestamp()
  WHERE q.state IN ('open', 'accepted') AND q.entity = '{entity}'
    AND NOT EXISTS (SELECT FROM {table} t WHERE t.id = {key})
  RETURNING 1
)
SELECT count(*) FROM removed
"""


class Removed(Step):
    """Closes quarantine entries whose legacy row is gone, before the verification counts them."""

    name = "removed"
    stage = "switch"
    queue = "migration.control"

    def items(self, context: Context) -> list[str]:
        return ["quarantine"]

    def apply(self, context: Context, scope: Scope) -> Counts:
        removed = 0
        for entity, table in _tables(context).items():
            base = table.columns["id"].base
            is_text = key_family(base) == "text"
            key = f"CAST(q.legacy_key AS {key_cast(base)})" if is_text else "q.legacy_key"
            close = _CLOSE.format(
                entity=entity, table=table.sql, key=key if is_text else key_from_text(key, base)
            )
            removed += int(context.connection.scalar(text(close)) or 0)
        return {"removed": removed}


def _tables(context: Context) -> dict[str, Table]:
    """The tables whose rows may be set aside, by entity: the legacy tables and those of steps."""
    legacy = context.legacy
    tables = {"user": legacy.users, "subscription": legacy.subscriptions}
    tables["project"] = legacy.projects
    # The list imports this module.
    steps: list[Step] = resolve_name("models.engine.migration:STEPS")
    for step in steps:
        if step.entity and step.entity not in tables and not step.takes_lists:
            table = step.source(context)
            if table is not None:
                tables[step.entity] = table
    return tables


class LateRemoved(Removed):
    """The same once the last change is taken up, so that what is left decides how the run ends."""

    name = "late_removed"
    stage = "finish"
