"""Verification and reconciliation of one page: store each difference, count what was checked.

While the application writes, a row may differ because its change waits to be taken up. Such a row
is excused here: whoever takes the change up verifies the row at once.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import text

from models.engine.step import Context, Counts, Scope, Step, entities
from models.engine.verification import read_account
from models.ledger.tables import RECONCILIATION, VERIFICATION

# One statement, so that what differs and what waits are of one snapshot: where another batch
# replays a change at this moment, either both its rows and its change are as before, or neither.
_STORE = """
WITH found (kind, entity, legacy_key, target_table, detail) AS MATERIALIZED ({statement}),
waiting (entity, legacy_key, target_table) AS ({waiting})
INSERT INTO migration.differences
  (run_id, stage, batch_id, kind, entity, legacy_key, target_table, detail)
SELECT :run_id, :stage, :batch_id, f.* FROM found f
WHERE NOT EXISTS (
  SELECT FROM waiting x WHERE x.entity = f.entity AND x.legacy_key = f.legacy_key
    AND x.target_table = f.target_table)
ON CONFLICT DO NOTHING
"""


def check(context: Context, stage: str, step: Step, scope: Scope) -> Counts:
    """Check one page with the step's own expectations, in the batch's transaction.

    Row by row only where the page's sums do not say at once that all is right.
    """
    if step.stage == VERIFICATION:
        return step.apply(context, scope)
    row = read_account(context, step, scope)
    statements = step.differences(context, scope)
    if not getattr(row, "tallies", False):
        statements = [*statements, *step.details(context, scope)]
    found = _store(context, stage, statements, scope)
    if stage == RECONCILIATION:
        return {"users_checked": row.users_checked if row else 0, "discrepancies": found}
    counted = entities(row) if row else {}
    checked = sum(value["total"] for value in counted.values())
    return counted | {"rows_checked": checked, "differences": found}


def recheck(context: Context, step: Step, scope: Scope) -> Counts:
    """Check keys that were taken up late, after the verification of their pages."""
    return {"differences": _store(context, VERIFICATION, step.recheck(context, scope), scope)}


def _store(context: Context, stage: str, statements: Iterable[str], scope: Scope) -> int:
    waiting = context.migration.waiting(context)
    parameters = context.parameters | {"stage": stage} | scope.parameters
    return sum(
        context.connection.execute(
            text(_STORE.format(statement=statement, waiting=waiting)), parameters
        ).rowcount
        for statement in statements
    )
