"""Rules 1 and 3 to 9 for users and their subscriptions: one statement a batch, one snapshot.

The rules are in `statement.py`; this runs it with the values of `made.py`. `verify.py` states them
a second time.
"""

from __future__ import annotations

import functools
from decimal import Decimal

from models.dashboard import ids, legacy, made
from models.dashboard.projects import verify as projects_verification
from models.dashboard.scopes import near, owned
from models.dashboard.sources import USERS
from models.dashboard.tools import is_still_ours
from models.dashboard.users import changes, checksum, statement
from models.dashboard.users import verify as users_verification
from models.engine.step import Context, Counts, Scope, Step, add, counts
from models.postgres.catalog import default_of

# A user whose balance somebody may be moving is locked before the statement takes its snapshot,
# so that the balance and the log that it reads belong together. Waits in key order.
_LOCK_BALANCES = """
SELECT count(*) FROM (
  SELECT FROM {users} u WHERE {scope} AND u.credits_balance <> 0
  ORDER BY u.id FOR NO KEY UPDATE) AS locked
"""


class Users(Step):
    """Migrates users with their suite, subscriptions, usage logs and credits."""

    name = "users"
    stage = "users"
    queue = "migration.users"
    source = USERS
    entity = "user"
    weight = 46
    part_entity = "subscription"
    part_table = "ai_tools"
    is_verified = True
    undone_by = "undo_users"
    resolves = True

    def prepare(self, context: Context, scope: Scope) -> Counts:
        user_key = context.sources.users.columns["id"].base
        context.execute(_LOCK_BALANCES, scope, scope=scope.condition("u.id", user_key))
        return {}

    def apply(self, context: Context, scope: Scope) -> Counts:
        names = _expressions(context, scope)
        found = list(changes.before(context, scope, names)) if context.may_be_there(scope) else []
        found.append(counts(context.execute(statement.MIGRATE, scope, **names).one()))
        if context.may_be_there(scope):
            found += changes.after(context, scope, names)
        return functools.reduce(add, found)

    def withdraw(self, context: Context, scope: Scope) -> Counts:
        if not context.may_be_there(scope):
            return {}
        names = _expressions(context, scope)
        return functools.reduce(add, changes.withdraw(context, scope, names))

    def differences(self, context: Context, scope: Scope) -> list[str]:
        return users_verification.differences(context, scope)

    def details(self, context: Context, scope: Scope) -> list[str]:
        owner_key = context.sources.users.columns["id"].base
        theirs = scope.condition("p.user_id", owner_key)
        return [
            *users_verification.details(context, scope),
            *projects_verification.details(context, theirs),
        ]

    def account(self, context: Context, scope: Scope) -> str:
        return checksum.statement(context, scope)


def _expressions(context: Context, scope: Scope) -> dict[str, str]:
    users, subscriptions = context.sources.users, context.sources.subscriptions
    user_key = users.columns["id"].base
    subscription_key = subscriptions.columns["id"].base
    defaulted = ("user_type", "billing_tier", "is_active", "organization_id")
    return {
        **made.expressions(context, is_optimistic=scope.is_optimistic),
        "scope": scope.condition("u.id", user_key),
        "suites_scope": owned(context, context.target.table("ai_suites"), "o", scope),
        "logs_scope": owned(context, context.target.table("credit_logs"), "c", scope),
        "subscriptions_scope": near(context, subscriptions, "s", scope),
        "parts": scope.parts_condition("s.id", subscription_key),
        "unless_there_is_id": scope.unless_there("id"),
        "unless_there_is_assignment": scope.unless_there("tool_id, user_id"),
        "unless_there_is_image": scope.unless_there("entity, legacy_key, run_id"),
        **changes.locks(context, may_be_there=context.may_be_there(scope)),
        "own_image": changes.OWN_IMAGE,
        "still_ours": is_still_ours(context),
        "suite_id": ids.id_of(context.sources, ids.SUITE, "u.id", user_key),
        "grant_id": ids.id_of(context.sources, ids.GRANT, "u.id", user_key),
        "opening_id": ids.id_of(context.sources, ids.OPENING, "u.id", user_key),
        "tool_id": ids.id_of(context.sources, ids.SUBSCRIPTION_TOOL, "s.id", subscription_key),
        "usage_id": ids.id_of(context.sources, ids.SUBSCRIPTION_USAGE, "s.id", subscription_key),
        "its_gpt_id_is_blank": legacy.is_blank("s.gpt_id"),
        "user_hash": context.sources.hash_by_key("user", "l.id"),
        "subscription_hash": context.sources.hash_by_key("subscription", "s.id"),
        "grant_amount": grant_amount(context, "o.final_type"),
        "role_amount": grant_amount(context, "given.type"),
        "suite_json": context.type_of("ai_suites", "configuration"),
        **{f"{column}_default": default_of(users, column) for column in defaulted},
    }


def grants(context: Context) -> dict[str, Decimal]:
    """Credits by type of user, as the run keeps them; `*` is any other type."""
    return {name: Decimal(amount) for name, amount in context.constants.items()}


def grant_amount(context: Context, user_type: str) -> str:
    """SQL for the credits that a user of this type is granted; amounts are validated decimals."""
    cases = " ".join(
        f"WHEN '{name}' THEN {amount}" for name, amount in grants(context).items() if name != "*"
    )
    other = f"{grants(context)['*']}::numeric"
    return f"CASE {user_type} {cases} ELSE {other} END" if cases else other
