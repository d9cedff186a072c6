"""Taking up what the application changed while the run was on: the captured keys, once more.

The same statements as for a page do it: they bring a list of keys in line with the legacy rows as
they stand. A change is forgotten in the transaction that takes it up, before its row is read, so
whatever is written after that read is captured again.
"""

from __future__ import annotations

import functools

from sqlalchemy import text

from models.dashboard.credits import Credits
from models.dashboard.projects.apply import Projects
from models.dashboard.projects.switch import Switch
from models.dashboard.subscriptions import Orphans
from models.dashboard.tools import remove_reinserted_users
from models.dashboard.users import verify
from models.dashboard.users.apply import Users
from models.engine import judgement, keys
from models.engine.step import Context, Counts, Scope, add, only_written
from models.postgres.keys import key_cast, list_cast

KEYS_A_BATCH = 200
KEYS_A_ROUND = 50_000
# A run does not chase its tail: what comes after so many rounds waits for the end of the run.
ROUNDS = 4

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
  WHERE t.entity = 'user'
)
SELECT DISTINCT t.owner_key FROM taken t WHERE t.entity = 'user' AND t.operation = 'DELETE'
"""

_FORGET_PROJECTS = """
DELETE FROM migration.changes c
WHERE c.entity = 'project' AND c.legacy_key = ANY(CAST(:keys AS text[]))
"""

# A subscription without an owner, and those of a user who is gone, are set aside.
_ORPHANS = """
SELECT s.id::text FROM {subscriptions} s
WHERE {scope} AND NOT EXISTS (SELECT FROM {users} u WHERE u.id = s.user_id)
"""

_OWNERLESS = """
DELETE FROM migration.changes c WHERE c.entity = 'subscription' AND c.owner_key IS NULL
RETURNING c.legacy_key
"""

# What a project that is gone has left behind, in this run.
_LEFT = """
SELECT 'extra', 'project', k.id::text, 'ai_tools', 'gone'
FROM unnest(CAST(:keys AS {kind}[])) AS k(id)
LEFT JOIN {projects} p ON p.id = k.id
JOIN {ai_tools} t ON t.id = {tool_id}
JOIN {tool_usage_logs} l ON l.id = {usage_id} AND l.session_id = :own_run
WHERE p.id IS NULL
"""


class ChangedUsers(Users):
    """Users with a change of their own, or of a subscription."""

    name = "changed_users"
    stage = "switch"
    takes_lists = True
    is_verified = False
    unverified = "the users of all pages are verified after it, late ones by recheck"

    def key_lists(self, context: Context, round_: int) -> list[list[str]]:
        return _lists(context, "owner_key", ("user", "subscription"), round_)

    def prepare(self, context: Context, scope: Scope) -> Counts:
        if scope.parts:
            # What came since the user passed alone is taken up with all that is the user's.
            return super().prepare(context, scope)
        kind = list_cast(context.legacy.users.columns["id"].base)
        deleted = context.execute(_FORGET_USERS, scope, kind=kind).scalars().all()
        found = remove_reinserted_users(context, scope.only(deleted))
        return functools.reduce(add, found, super().prepare(context, scope))

    def apply(self, context: Context, scope: Scope) -> Counts:
        found = super().apply(context, scope)
        in_scope = scope.condition("s.user_id", context.legacy.users.columns["id"].base)
        orphans = [
            *context.execute(_ORPHANS, scope, scope=in_scope).scalars(),
            *context.execute(_OWNERLESS, scope).scalars(),
        ]
        if orphans:
            Orphans().apply(context, scope.only(orphans))
        return only_written(found) | {"replayed": len(orphans)}

    def recheck(self, context: Context, scope: Scope) -> list[str]:
        credits = Credits().differences(context, scope)
        return [
            *self.differences(context, scope),
            *verify.details(context, scope),
            *credits,
            *judgement.of_users(context, scope),
        ]


class ChangedProjects(Projects):
    """Projects with a change of their own, or of their owner."""

    name = "changed_projects"
    stage = "switch"
    takes_lists = True
    is_verified = False
    unverified = "the projects of all pages are verified after it, late ones by recheck"

    def key_lists(self, context: Context, round_: int) -> list[list[str]]:
        return _lists(context, "legacy_key", ("project",), round_)

    def prepare(self, context: Context, scope: Scope) -> Counts:
        context.execute(_FORGET_PROJECTS, scope)
        return super().prepare(context, scope)

    def apply(self, context: Context, scope: Scope) -> Counts:
        found = [super().apply(context, scope), Switch().apply(context, scope)]
        return only_written(functools.reduce(add, found))

    def recheck(self, context: Context, scope: Scope) -> list[str]:
        key = context.legacy.projects.columns["id"].base
        left = context.render(
            _LEFT,
            kind=key_cast(key),
            tool_id=keys.id_of(keys.PROJECT_TOOL, "k.id", key),
            usage_id=keys.id_of(keys.PROJECT_USAGE, "k.id", key),
        )
        return [*self.details(context, scope), left, *judgement.of_projects(context, scope)]


class LateUsers(ChangedUsers):
    """The same after the verification, which each batch therefore repeats for its own rows."""

    name = "late_users"
    stage = "finish"
    is_late = True


class LateProjects(ChangedProjects):
    """The same for projects."""

    name = "late_projects"
    stage = "finish"
    is_late = True


def _lists(
    context: Context, column: str, entities: tuple[str, ...], round_: int
) -> list[list[str]]:
    found = pending(context, column, entities)
    if round_ >= ROUNDS or (round_ > 0 and len(found) < KEYS_A_BATCH):
        return []
    return [found[start : start + KEYS_A_BATCH] for start in range(0, len(found), KEYS_A_BATCH)]


def pending(context: Context, column: str, entities: tuple[str, ...]) -> list[str]:
    """The keys with changes that nobody has taken up, in order."""
    statement = text(
        f"SELECT DISTINCT c.{column} FROM migration.changes c"
        f" WHERE c.entity = ANY(:entities) AND c.{column} IS NOT NULL ORDER BY 1 LIMIT :most"
    )
    parameters = {"entities": list(entities), "most": KEYS_A_ROUND}
    return list(context.connection.scalars(statement, parameters))
