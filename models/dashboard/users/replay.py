"""What the application changed of users and their subscriptions, replayed user by user."""

from __future__ import annotations

import functools

from models.dashboard.credits import Credits
from models.dashboard.projects.choice import names_subscriptions
from models.dashboard.subscriptions import Orphans
from models.dashboard.tools import remove_reinserted_users
from models.dashboard.users import verify
from models.dashboard.users.apply import Users
from models.engine.checks import judgement
from models.engine.live.replay import Replay
from models.engine.step import Context, Counts, Scope, add, only_written
from models.postgres.keys import list_cast

_FORGET_USERS = """
WITH taken AS (
  DELETE FROM migration.changes c
  WHERE c.entity IN ('user', 'subscription') AND c.owner_key = ANY(CAST(:keys AS text[]))
    AND c.operation <> 'RENAME'
  RETURNING c.entity, c.owner_key, c.operation
),
their_projects AS (
  INSERT INTO migration.changes (entity, legacy_key, owner_key, operation)
  SELECT DISTINCT 'project', p.id::text, p.user_id::text, 'UPDATE'
  FROM taken t JOIN {projects} p ON p.user_id = CAST(t.owner_key AS {kind})
  WHERE t.entity IN ({of_projects})
)
SELECT DISTINCT t.owner_key FROM taken t WHERE t.entity = 'user' AND t.operation = 'DELETE'
"""

# A subscription without an owner, and those of a user who is gone, are quarantined.
_ORPHANS = """
SELECT s.id::text FROM {subscriptions} s
WHERE {scope} AND NOT EXISTS (SELECT FROM {users} u WHERE u.id = s.user_id)
"""

_OWNERLESS = """
DELETE FROM migration.changes c WHERE c.entity = 'subscription' AND c.owner_key IS NULL
RETURNING c.legacy_key
"""


class ChangedUsers(Replay, Users):
    """Users with a change of their own, or of a subscription."""

    name = "changed_users"
    changes = ("user", "subscription")
    keyed_by = "owner_key"

    def prepare(self, context: Context, scope: Scope) -> Counts:
        if scope.parts:
            # What came since the user passed alone is replayed with all that is the user's.
            return super().prepare(context, scope)
        kind = list_cast(context.sources.users.key.base)
        # Where a project holds the key of a subscription, its tool follows that one, too.
        follows = names_subscriptions(context.sources)
        of_projects = "'user', 'subscription'" if follows else "'user'"
        names = {"kind": kind, "of_projects": of_projects}
        deleted = context.execute(_FORGET_USERS, scope, **names).scalars().all()
        found = remove_reinserted_users(context, scope.only(deleted))
        return functools.reduce(add, found, super().prepare(context, scope))

    def apply(self, context: Context, scope: Scope) -> Counts:
        found = super().apply(context, scope)
        in_scope = scope.condition("s.user_id", context.sources.users.key.base)
        orphans = [
            *context.execute(_ORPHANS, scope, scope=in_scope).scalars(),
            *([] if context.is_canary else context.execute(_OWNERLESS, scope).scalars()),
        ]
        if orphans:
            Orphans().apply(context, scope.only(orphans))
        return only_written(found) | {"replayed": len(orphans)}

    def recheck(self, context: Context, scope: Scope) -> list[str]:
        return [
            *self.differences(context, scope),
            *verify.details(context, scope),
            *judgement.of_rows(context, "user", scope),
        ]

    def reconcile_again(self, context: Context, scope: Scope) -> list[str]:
        return Credits().differences(context, scope)
