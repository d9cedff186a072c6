"""Which rows a retry tries: those quarantined, those that differ, and those that were lost."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text

from models.engine.source import SourceTable
from models.engine.step import Context, Step
from models.ledger.quarantine import WORKER_DIED

_KEYS = f"""
SELECT {{key}}::text AS key, coalesce(q.reason = '{WORKER_DIED}', false) AS died
FROM {{table}} t LEFT JOIN migration.quarantine q ON q.entity = :entity
  AND q.legacy_key = {{key}}::text AND q.state = 'open'
WHERE {{key}}::text IN (
  SELECT o.legacy_key FROM migration.quarantine o
  WHERE :quarantined AND o.entity = :entity AND o.state = 'open'
  UNION SELECT d.legacy_key FROM migration.differences d
  WHERE d.run_id = :run_id AND d.entity = :entity)
ORDER BY {{key}}
"""


@dataclass(frozen=True)
class Keys:
    """Keys for one step; the suspects among them killed their workers, and go alone."""

    step: str
    stage: str
    keys: list[str]
    suspects: frozenset[str] = frozenset()


def of_step(context: Context, step: Step, table: SourceTable, *, quarantined: bool) -> Keys:
    """The step's rows that are quarantined (where `quarantined`), or differ, and still exist."""
    statement = _KEYS.format(table=table.sql, key=table.key_of("t"))
    values = {"run_id": context.run_id, "entity": step.entity, "quarantined": quarantined}
    found = context.connection.execute(text(statement), values).all()
    suspects = frozenset(row.key for row in found if row.died)
    return Keys(step.name, step.stage, [row.key for row in found], suspects)
