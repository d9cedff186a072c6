"""Verification and reconciliation of one page: store each difference, count what was checked."""

from __future__ import annotations

from sqlalchemy import text

from models.steps import RECONCILIATION
from models.steps.base import BLANKS, Context, Counts, Scope, Step, entities

_STORE = (
    "INSERT INTO migration.differences"
    " (run_id, stage, batch_id, kind, entity, legacy_key, target_table, detail)"
    " SELECT :run_id, :stage, :batch_id, found.* FROM ({statement}) AS found"
)


def check(context: Context, stage: str, step: Step, scope: Scope) -> Counts:
    """Check one page with the step's own expectations, in the batch's transaction."""
    connection = context.connection
    parameters = {
        "run_id": context.run_id,
        "batch_id": context.batch_id,
        "stage": stage,
        "blanks": BLANKS,
    } | scope.parameters
    found = sum(
        connection.execute(text(_STORE.replace("{statement}", statement)), parameters).rowcount
        for statement in step.differences(context, scope)
    )
    account = step.account(context, scope)
    row = connection.execute(text(account), parameters).one() if account else None
    if stage == RECONCILIATION:
        return {"users_checked": row.users_checked if row else 0, "discrepancies": found}
    counted = entities(row) if row else {}
    checked = sum(value["total"] for value in counted.values())
    return counted | {"rows_checked": checked, "differences": found}
