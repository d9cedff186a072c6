"""What the verifications of users and projects have in common; the steps share none of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from sqlalchemy import text

from models.engine.step import Context, Scope, Step
from models.errors import BadRow
from models.postgres.catalog import DEFAULT_COLLATION, TEXT_TYPES, Table
from models.postgres.database import as_ours

_PLAIN_TEXT = TEXT_TYPES - {"character"}


class Check(NamedTuple):
    """One thing that may be wrong with a row, and the SQL condition under which it is."""

    kind: str
    table: str
    detail: str
    condition: str


def read_account(context: Context, step: Step, scope: Scope) -> Any:
    """The page's counts and sums, None for a step without: hopefully, and in vain with care."""

    def read(scope: Scope) -> Any:
        statement = step.account(context, scope)
        parameters = context.parameters | scope.parameters
        return context.connection.execute(text(statement), parameters).one() if statement else None

    try:
        with as_ours(), context.connection.begin_nested():
            return read(replace(scope, is_hopeful=True))
    except BadRow:
        return read(scope)


def wrong_values(table: str, given: str, columns: dict[str, str]) -> list[Check]:
    """Checks of columns: each condition holds only where `given` does."""
    return [
        Check("wrong_value", table, column, f"({given}) AND ({condition})")
        for column, condition in columns.items()
    ]


# Over `a` (assignment), `l` (usage log) and `e` (expected: user_id, tool_id), each perhaps null.
_HANGING = (
    *wrong_values(
        "tool_assignments",
        "a.tool_id IS NOT NULL AND (l.id IS NULL OR l.session_id = :own_run)",
        {
            "assigned_by": "a.assigned_by::text IS DISTINCT FROM {assigned_by}",
            "permissions": "a.permissions::jsonb IS DISTINCT FROM"
            " jsonb_build_object('full_access', true)",
            "expires_at": "a.expires_at IS NOT NULL",
        },
    ),
    Check(
        "wrong_owner",
        "tool_usage_logs",
        "",
        "l.id IS NOT NULL AND (l.user_id <> e.user_id OR l.tool_id <> e.tool_id)",
    ),
    *wrong_values(
        "tool_usage_logs",
        "l.id IS NOT NULL",
        {
            "action": "l.action IS DISTINCT FROM 'migration'",
            "credits_used": "l.credits_used IS DISTINCT FROM 0",
            "status": "l.status IS DISTINCT FROM 'completed'",
        },
    ),
)


def tool_checks(columns: dict[str, str]) -> list[Check]:
    """Checks of a tool `t` in the suite `home` and of what hangs on it; `columns` as above.

    A tool that the new application has changed since is left alone, unless this run made it.
    """
    return [
        Check(
            "wrong_owner",
            "ai_tools",
            "",
            "t.id IS NOT NULL AND home.user_id IS DISTINCT FROM e.user_id",
        ),
        *wrong_values(
            "ai_tools",
            "t.id IS NOT NULL AND (l.session_id = :own_run"
            " OR t.updated_at IS NOT DISTINCT FROM t.created_at)",
            {
                "tool_type": "t.tool_type IS DISTINCT FROM 'gpt'",
                "pricing_tier": "t.pricing_tier::text IS DISTINCT FROM 'free'",
                "credits_cost": "t.credits_cost IS DISTINCT FROM 0",
                "requires_approval": "t.requires_approval IS DISTINCT FROM false",
                **columns,
            },
        ),
        *_HANGING,
    ]


def with_checks(statement: str, checks: Sequence[Check]) -> str:
    """Fill {differs}, true for a row with any fault, and {checks}, which names each of them.

    Nearly all rows have none: only for the others are the conditions told apart.
    """
    differs = "\n  OR ".join(f"({check.condition})" for check in checks)
    rows = ",\n  ".join(
        f"('{check.kind}', '{check.table}', nullif('{check.detail}', ''), {check.condition})"
        for check in checks
    )
    return statement.replace("{differs}", differs).replace("{checks}", rows)


def newest_images(
    context: Context, entity: str, table: Table, scope: Scope, given: str = "true"
) -> str:
    """SQL for the page's newest before-images `i`, of those for which `given` holds.

    Columns `legacy_key` and `was`, at most one row a key; read as a range where keys sort as text.
    """
    theirs = images_of("i", table, scope)
    return (
        "(SELECT DISTINCT ON (i.legacy_key) i.legacy_key, i.was FROM migration.before_images i"
        f" WHERE i.entity = '{entity}' AND {theirs} AND {given}"
        " ORDER BY i.legacy_key DESC, i.run_id DESC)"
    )


def images_of(alias: str, table: Table, scope: Scope) -> str:
    """SQL condition: the before-image under this alias is one of a row of the page."""
    key = table.columns["id"]
    if scope.keys is not None or (key.base in _PLAIN_TEXT and key.collation == DEFAULT_COLLATION):
        return scope.condition(f"{alias}.legacy_key", "text")
    own = scope.condition("t.id", key.base)
    return f"{alias}.legacy_key IN (SELECT t.id::text FROM {table.sql} t WHERE {own})"


def system_assigner(context: Context) -> str:
    """What `assigned_by` must hold: null where it can only hold a user's key."""
    table = context.target.table("tool_assignments")
    points_at_user = table.key_on("assigned_by") is not None
    is_text = table.columns["assigned_by"].base in TEXT_TYPES
    return "NULL" if points_at_user or not is_text else "'system'"


def expected_preferences(context: Context, *, is_hopeful: bool = False) -> str:
    """The preferences of the subscription `s` as jsonb; null where there are none that it takes.

    Hopeful, the statement fails for a document that jsonb does not take.
    """
    document = context.legacy.subscriptions.columns.get("preferences")
    if document is None:
        return "NULL::jsonb"
    if document.base == "jsonb" or is_hopeful:
        return "s.preferences::jsonb"
    return "migration.try_jsonb(s.preferences::text)"
