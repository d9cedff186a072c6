"""How many legacy rows there are at the end, and how many of them are set aside."""

from __future__ import annotations

from models.steps.base import Context, Counts, Scope, Step, entities

# As they stood when the last change was taken up: what came since belongs to the next run.
_COUNT = """
WITH since AS (
  SELECT c.entity, count(*) FILTER (WHERE c.operation = 'INSERT')
    - count(*) FILTER (WHERE c.operation = 'DELETE') AS added
  FROM migration.changes c GROUP BY c.entity
),
aside AS (
  SELECT q.entity, count(*) AS rows FROM migration.quarantine q
  WHERE q.state IN ('open', 'accepted') GROUP BY q.entity
)
SELECT
  (SELECT count(*) FROM {users}) - coalesce(
    (SELECT added FROM since WHERE entity = 'user'), 0) AS users,
  (SELECT count(*) FROM {subscriptions}) - coalesce(
    (SELECT added FROM since WHERE entity = 'subscription'), 0) AS subscriptions,
  (SELECT count(*) FROM {projects}) - coalesce(
    (SELECT added FROM since WHERE entity = 'project'), 0) AS projects,
  coalesce((SELECT rows FROM aside WHERE entity = 'user'), 0) AS users_quarantined,
  coalesce((SELECT rows FROM aside WHERE entity = 'subscription'), 0) AS subscriptions_quarantined,
  coalesce((SELECT rows FROM aside WHERE entity = 'project'), 0) AS projects_quarantined
"""


class Totals(Step):
    """Counts the legacy rows while the triggers still stand."""

    name = "totals"
    stage = "finish"
    queue = "migration.control"

    def items(self, context: Context) -> list[str]:
        return ["totals"]

    def apply(self, context: Context, scope: Scope) -> Counts:
        return {"final": entities(context.execute(_COUNT, scope).one())}
