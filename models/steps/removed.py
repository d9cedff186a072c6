"""Rule 9, the end of a quarantine: a row that no longer exists is closed as removed."""

from __future__ import annotations

from models.legacy import key_cast
from models.steps.base import Context, Counts, Scope, Step

_CLOSE = """
WITH removed AS (
  UPDATE migration.quarantine q SET state = 'removed', changed_at = clock_timestamp()
  WHERE q.state IN ('open', 'accepted') AND (
    q.entity = 'user'
      AND NOT EXISTS (SELECT FROM {users} u WHERE u.id = {user_key})
    OR q.entity = 'subscription'
      AND NOT EXISTS (SELECT FROM {subscriptions} s WHERE s.id = {subscription_key})
    OR q.entity = 'project'
      AND NOT EXISTS (SELECT FROM {projects} p WHERE p.id = {project_key}))
  RETURNING 1
)
SELECT count(*) AS removed FROM removed
"""


class Removed(Step):
    """Closes quarantine entries whose legacy row is gone, before the verification counts them."""

    name = "removed"
    stage = "switch"
    queue = "migration.control"

    def items(self, context: Context) -> list[str]:
        return ["quarantine"]

    def apply(self, context: Context, scope: Scope) -> Counts:
        tables = {
            "user": context.legacy.users,
            "subscription": context.legacy.subscriptions,
            "project": context.legacy.projects,
        }
        # The key is cast only for its own entity: another entity's key may not even be a number.
        expressions = {
            f"{entity}_key": f"CASE WHEN q.entity = '{entity}'"
            f" THEN CAST(q.legacy_key AS {key_cast(table.columns['id'].base)}) END"
            for entity, table in tables.items()
        }
        return {"removed": context.execute(_CLOSE, scope, **expressions).scalar()}


class LateRemoved(Removed):
    """The same once the last change is taken up, so that what is left decides how the run ends."""

    name = "late_removed"
    stage = "finish"
