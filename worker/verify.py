"""Verification and reconciliation of one page: store each difference, count what was checked.

While the application writes, a row may differ because its change waits to be taken up. Such a row
is excused here: whoever takes the change up verifies the row at once.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import text

from models.engine import keys
from models.engine.migration import RECONCILIATION, VERIFICATION
from models.engine.step import Context, Counts, Scope, Step, entities
from models.engine.verification import read_account
from models.postgres.keys import key_cast, key_from_text

# By the row's own key, or by its owner: a tool that has lost its subscription still has a suite.
# One statement, so that what differs and what waits are of one snapshot: where another batch takes
# a change up at this moment, either both its rows and its change are as before, or neither.
_STORE = """
WITH found (kind, entity, legacy_key, target_table, detail) AS MATERIALIZED ({statement}),
owned AS (
  SELECT f.entity, f.legacy_key, f.target_table, f.legacy_key AS owner_key
  FROM found f WHERE f.entity = 'user'
  UNION SELECT f.entity, f.legacy_key, f.target_table, s.user_id::text
  FROM found f JOIN {subscriptions} s ON s.id = {subscription_key}
  WHERE f.entity = 'subscription'
  UNION SELECT f.entity, f.legacy_key, f.target_table, p.user_id::text
  FROM found f JOIN {projects} p ON p.id = {project_key} WHERE f.entity = 'project'
  UNION SELECT f.entity, f.legacy_key, f.target_table, h.user_id::text
  FROM found f JOIN {ai_tools} t ON t.id = f.legacy_key JOIN {ai_suites} h ON h.id = t.suite_id
  WHERE f.target_table = 'ai_tools'
  UNION SELECT f.entity, f.legacy_key, f.target_table, a.user_id::text
  FROM found f JOIN {tool_assignments} a ON a.tool_id = f.legacy_key
  WHERE f.target_table = 'tool_assignments'
  UNION SELECT f.entity, f.legacy_key, f.target_table, l.user_id::text
  FROM found f JOIN {tool_usage_logs} l ON l.id = f.legacy_key
),
excused AS (
  SELECT o.entity, o.legacy_key, o.target_table
  FROM owned o JOIN migration.changes c ON c.owner_key = o.owner_key
  WHERE c.entity = 'user' OR c.entity = 'subscription' AND o.entity <> 'project'
  UNION ALL
  SELECT f.entity, f.legacy_key, f.target_table FROM found f JOIN migration.changes c
    ON c.entity = f.entity AND c.legacy_key = f.legacy_key
  UNION ALL
  SELECT f.entity, f.legacy_key, f.target_table FROM found f JOIN migration.changes c
    ON c.entity = 'project' AND f.entity = 'project' AND f.legacy_key = {tool_of_project}
)
INSERT INTO migration.differences
  (run_id, stage, batch_id, kind, entity, legacy_key, target_table, detail)
SELECT :run_id, :stage, :batch_id, f.* FROM found f
WHERE NOT EXISTS (
  SELECT FROM excused x WHERE x.entity = f.entity AND x.legacy_key = f.legacy_key
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
    legacy = context.legacy
    base = legacy.projects.columns["id"].base
    key = f"(CASE WHEN c.entity = 'project' THEN CAST(c.legacy_key AS {key_cast(base)}) END)"
    names = {
        "tool_of_project": keys.id_of(keys.PROJECT_TOOL, key, base),
        "project_key": key_from_text("f.legacy_key", base),
        "subscription_key": key_from_text("f.legacy_key", legacy.subscriptions.columns["id"].base),
    }
    parameters = context.parameters | {"stage": stage} | scope.parameters
    return sum(
        context.connection.execute(
            text(context.render(_STORE, statement=statement, **names)), parameters
        ).rowcount
        for statement in statements
    )
