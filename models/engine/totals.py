"""How the legacy rows stand at the end: how many there are, are migrated and are set aside."""

from __future__ import annotations

from sqlalchemy import text

from models.engine.accounting import account
from models.engine.row_hash import ENTITIES
from models.engine.step import Context, Counts, Scope, Step

# Where nothing was replayed or closed since, the rows are as they were before the cutover.
_AS_BEFORE = text(
    """
SELECT jsonb_object_agg(e.key, e.value)
FROM migration.batches a CROSS JOIN jsonb_each(a.counts -> 'accounted') AS e
WHERE a.run_id = :run_id AND a.stage = 'verification'
  AND NOT EXISTS (
    SELECT FROM migration.batches b WHERE b.run_id = :run_id AND b.stage = 'finish'
      AND ((b.counts ->> 'replayed')::int > 0 OR (b.counts ->> 'removed')::int > 0))
HAVING count(DISTINCT e.key) = :tables AND NOT bool_or(e.value ? 'changes')
"""
)


class Totals(Step):
    """Accounts for the legacy rows once more, while the triggers are still there."""

    name = "totals"
    stage = "finish"
    queue = "migration.control"

    def items(self, context: Context) -> list[str]:
        return ["totals"]

    def apply(self, context: Context, scope: Scope) -> Counts:
        as_before = context.connection.scalar(
            _AS_BEFORE, {"run_id": context.run_id, "tables": len(ENTITIES)}
        )
        if as_before is not None:
            return {"final": as_before}
        counted, lost = account(context)
        return {"final": counted, "unaccounted": lost, "differences": lost}
