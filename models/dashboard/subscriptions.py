"""Rule 9 for subscriptions whose owner does not exist: no page of users would ever reach them.

They are found by pages of users all the same: a range of users is a range of the subscriptions'
`user_id`, where both sort alike; a user in the first and not in the second is missing. A
list holds keys of subscriptions.
"""

from __future__ import annotations

from models.dashboard import ids
from models.dashboard.scopes import near, sorts_as_owners
from models.engine.source import SourceTable, parents_are_enforced
from models.engine.step import Context, Counts, Scope, Step, counts

# Two ranges of two indexes side by side; only the rows of the missing are read for themselves, by
# key: OFFSET keeps it that, a join may begin with the first of all rows.
_OF_RANGE = """
SELECT s.id, s.user_id FROM (
  SELECT DISTINCT o.user_id FROM {subscriptions} o WHERE {theirs} AND NOT EXISTS (
    SELECT FROM {users} u WHERE u.id = o.user_id AND {own})
) AS gone
CROSS JOIN LATERAL (
  SELECT s.id, s.user_id FROM {subscriptions} s WHERE s.user_id = gone.user_id OFFSET 0
) AS s
"""
# Beyond the last user there are those who name none.
_OF_NOBODY = "UNION ALL SELECT s.id, s.user_id FROM {subscriptions} s WHERE s.user_id IS NULL"
_BY_KEY = """
SELECT s.id, s.user_id FROM {subscriptions} s
WHERE {scope} AND NOT EXISTS (SELECT FROM {users} u WHERE u.id = s.user_id OFFSET 0)
"""

_SET_ASIDE = """
WITH orphan AS MATERIALIZED ({orphans}),
new_quarantine AS (
  INSERT INTO migration.quarantine AS q
    (entity, legacy_key, run_id, batch_id, reason, message, row_hash)
  SELECT 'subscription', o.id::text, :run_id, :batch_id, 'owner_missing',
    'The owner does not exist.', {row_hash}
  FROM orphan o
  {quarantine_again}
)
SELECT count(*) AS subscriptions, count(*) AS subscriptions_quarantined FROM orphan
"""

# The second opinion: owners that are named, less those that are.
_STRAY = """
SELECT s.id::text AS legacy_key FROM (
  SELECT o.user_id FROM {subscriptions} o WHERE {theirs}
  EXCEPT SELECT u.id FROM {users} u WHERE {own}
) AS gone
CROSS JOIN LATERAL (
  SELECT s.id FROM {subscriptions} s WHERE s.user_id = gone.user_id OFFSET 0
) AS s
"""
_STRAY_OF_NOBODY = "UNION ALL SELECT s.id::text FROM {subscriptions} s WHERE s.user_id IS NULL"
_STRAY_BY_KEY = """
SELECT s.id::text AS legacy_key FROM {subscriptions} s
WHERE {scope} AND (SELECT count(*) FROM {users} u WHERE u.id = s.user_id) = 0
"""

_MISSING = """
SELECT 'missing', 'subscription', s.legacy_key, 'quarantine', 'no owner'
FROM ({stray}) AS s
LEFT JOIN migration.quarantine q ON q.entity = 'subscription' AND q.legacy_key = s.legacy_key
  AND q.state IN ('open', 'accepted')
WHERE q.legacy_key IS NULL
"""

_EXTRA = """
SELECT 'extra', 'subscription', s.id::text, 'tool_usage_logs', 'quarantined', l.id::text, NULL, NULL
FROM migration.quarantine q
JOIN {subscriptions} s ON s.id::text = q.legacy_key
JOIN {tool_usage_logs} l ON l.id = {usage_id} AND l.session_id = :own_run
WHERE q.entity = 'subscription' AND q.state IN ('open', 'accepted') AND {theirs}
"""

_ACCOUNT = """
SELECT count(*) AS subscriptions, count(q.legacy_key) AS subscriptions_quarantined,
  count(*) = count(q.legacy_key) AS matches
FROM ({stray}) AS s
LEFT JOIN migration.quarantine q ON q.entity = 'subscription' AND q.legacy_key = s.legacy_key
  AND q.state IN ('open', 'accepted')
"""


class Orphans(Step):
    """Quarantines subscriptions without an owner."""

    name = "orphans"
    stage = "users"
    queue = "migration.users"
    entity = "subscription"
    weight = 2
    is_counted = False
    is_verified = True
    undone_by = "undo_rest"
    resolves = True

    def table(self, context: Context) -> SourceTable | None:
        subscriptions, users = context.sources.subscriptions, context.sources.users
        if parents_are_enforced(context.sources, subscriptions):
            return None
        return users if sorts_as_owners(context.sources.users, subscriptions) else subscriptions

    def keys_in(self, context: Context, scope: Scope) -> list[str]:
        if scope.keys is not None:
            return list(scope.keys)
        found = _select(context, scope, _OF_RANGE, _OF_NOBODY, _BY_KEY)
        statement = f"SELECT o.id::text FROM ({found}) AS o ORDER BY o.id"
        return list(context.execute(statement, scope).scalars())

    def apply(self, context: Context, scope: Scope) -> Counts:
        orphans = _select(context, scope, _OF_RANGE, _OF_NOBODY, _BY_KEY)
        row_hash = context.sources.hash_by_key("subscription", "o.id")
        return counts(context.execute(_SET_ASIDE, scope, orphans=orphans, row_hash=row_hash).one())

    def differences(self, context: Context, scope: Scope) -> list[str]:
        key = context.sources.subscriptions.columns["id"].base
        usage_id = ids.id_of(context.sources, ids.SUBSCRIPTION_USAGE, "s.id", key)
        theirs = _condition(context, scope)
        if _is_range(context, scope):
            theirs = near(context, context.sources.subscriptions, "s", scope)
            theirs = theirs if scope.high is not None else f"({theirs} OR s.user_id IS NULL)"
        return [context.render(_EXTRA, theirs=theirs, usage_id=usage_id)]

    def details(self, context: Context, scope: Scope) -> list[str]:
        return [context.render(_MISSING, stray=_stray(context, scope))]

    def account(self, context: Context, scope: Scope) -> str:
        return context.render(_ACCOUNT, stray=_stray(context, scope))


def _is_range(context: Context, scope: Scope) -> bool:
    """Whether the scope is a range of users."""
    return scope.keys is None and sorts_as_owners(
        context.sources.users, context.sources.subscriptions
    )


def _stray(context: Context, scope: Scope) -> str:
    return _select(context, scope, _STRAY, _STRAY_OF_NOBODY, _STRAY_BY_KEY)


def _select(context: Context, scope: Scope, of_range: str, of_nobody: str, by_key: str) -> str:
    if not _is_range(context, scope):
        return context.render(by_key, scope=_condition(context, scope))
    is_last = scope.high is None
    return context.render(
        of_range + of_nobody if is_last else of_range,
        theirs=near(context, context.sources.subscriptions, "o", scope),
        own=scope.condition("u.id", context.sources.users.columns["id"].base),
    )


def _condition(context: Context, scope: Scope) -> str:
    return scope.condition("s.id", context.sources.subscriptions.columns["id"].base)
