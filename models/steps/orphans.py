"""Rule 9 for subscriptions whose owner does not exist: no page of users would ever reach them."""

from __future__ import annotations

from models import keys
from models.catalog import Table
from models.legacy import owners_are_enforced
from models.steps.base import Context, Counts, Scope, Step, counts

# OFFSET keeps it a look by key: as a join it may begin with the first of all users.
_IS_ORPHAN = "NOT EXISTS (SELECT FROM {users} u WHERE u.id = s.user_id OFFSET 0)"

_SET_ASIDE = """
WITH orphan AS MATERIALIZED (
  SELECT s.id::text AS legacy_key FROM {subscriptions} s
  WHERE {scope} AND {is_orphan}
),
set_aside AS (
  INSERT INTO migration.quarantine AS q (entity, legacy_key, run_id, batch_id, reason, message)
  SELECT 'subscription', o.legacy_key, :run_id, :batch_id, 'owner_missing',
    'The owner does not exist.'
  FROM orphan o
  {set_aside_again}
)
SELECT count(*) AS subscriptions, count(*) AS subscriptions_quarantined FROM orphan
"""

_MISSING = """
SELECT 'missing', 'subscription', s.id::text, 'quarantine', 'no owner'
FROM {subscriptions} s
LEFT JOIN {users} u ON u.id = s.user_id
LEFT JOIN migration.quarantine q ON q.entity = 'subscription' AND q.legacy_key = s.id::text
  AND q.state IN ('open', 'accepted')
WHERE {scope} AND u.id IS NULL AND q.legacy_key IS NULL
"""

_EXTRA = """
SELECT 'extra', 'subscription', s.id::text, 'tool_usage_logs', 'set aside'
FROM migration.quarantine q
JOIN {subscriptions} s ON s.id::text = q.legacy_key
JOIN {tool_usage_logs} l ON l.id = {usage_id} AND l.session_id = :own_run
WHERE q.entity = 'subscription' AND q.state IN ('open', 'accepted') AND {scope}
"""

_ACCOUNT = """
SELECT count(*) AS subscriptions, count(q.legacy_key) AS subscriptions_quarantined,
  count(*) = count(q.legacy_key) AS tallies
FROM {subscriptions} s
LEFT JOIN migration.quarantine q ON q.entity = 'subscription' AND q.legacy_key = s.id::text
  AND q.state IN ('open', 'accepted')
WHERE {scope} AND {is_orphan}
"""


class Orphans(Step):
    """Sets subscriptions without an owner aside."""

    name = "orphans"
    stage = "users"
    queue = "migration.users"
    entity = "subscription"

    def source(self, context: Context) -> Table | None:
        subscriptions = context.legacy.subscriptions
        if owners_are_enforced(subscriptions, context.legacy.users):
            return None
        return subscriptions

    def apply(self, context: Context, scope: Scope) -> Counts:
        is_orphan = context.render(_IS_ORPHAN)
        condition = _condition(context, scope)
        row = context.execute(_SET_ASIDE, scope, scope=condition, is_orphan=is_orphan).one()
        return counts(row)

    def differences(self, context: Context, scope: Scope) -> list[str]:
        key = context.legacy.subscriptions.columns["id"].base
        usage_id = keys.id_of(keys.SUBSCRIPTION_USAGE, "s.id", key)
        return [context.render(_EXTRA, scope=_condition(context, scope), usage_id=usage_id)]

    def details(self, context: Context, scope: Scope) -> list[str]:
        return [context.render(_MISSING, scope=_condition(context, scope))]

    def account(self, context: Context, scope: Scope) -> str:
        is_orphan = context.render(_IS_ORPHAN)
        return context.render(_ACCOUNT, scope=_condition(context, scope), is_orphan=is_orphan)


def _condition(context: Context, scope: Scope) -> str:
    return scope.condition("s.id", context.legacy.subscriptions.columns["id"].base)
