"""Verification and reconciliation of one page: store each difference, count what was checked.

While the application writes, a row may differ because its change waits for its replay. Such a row
is excused here: the replay of the change verifies the row at once.
"""

from __future__ import annotations

from models.engine.checks.verification import statements_of, store
from models.engine.step import Context, Counts, Scope, Step, entities
from models.ledger.tables import RECONCILIATION, VERIFICATION


def check(
    context: Context, stage: str, step: Step, scope: Scope, *, is_optimistic: bool = False
) -> Counts:
    """Check one page with the step's own expectations, in the batch's transaction.

    Optimistically, an error of a row is no finding: check the page again, without.
    """
    if step.stage == VERIFICATION:
        return step.apply(context, scope)
    row, statements = statements_of(context, step, scope, is_optimistic=is_optimistic)
    found = store(context, stage, statements, scope)
    if stage == RECONCILIATION:
        checked = f"{context.migration.plural(step.entity)}_checked"
        return {checked: getattr(row, checked, 0), "discrepancies": found}
    counted = entities(row) if row else {}
    checked = sum(value["total"] for value in counted.values())
    return counted | {"rows_checked": checked, "differences": found}


def recheck(context: Context, step: Step, scope: Scope) -> Counts:
    """Check keys that were replayed late, after the verification of their pages.

    What the reconciliation finds is listed as its own: it, and what it names, fixes it.
    """
    store(context, RECONCILIATION, step.reconcile_again(context, scope), scope)
    return {"differences": store(context, VERIFICATION, step.recheck(context, scope), scope)}
