"""What must hold for a tool and its dependents, for the verification; no step uses it."""

from __future__ import annotations

from models.engine.checks.verification import Check, wrong_values
from models.engine.step import Context
from models.postgres.catalog import TEXT_TYPES

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


def system_assigner(context: Context) -> str:
    """What `assigned_by` must hold: null where it can only hold a user's key."""
    table = context.target.table("tool_assignments")
    points_at_user = table.key_on("assigned_by") is not None
    is_text = table.columns["assigned_by"].base in TEXT_TYPES
    return "NULL" if points_at_user or not is_text else "'system'"


def expected_preferences(context: Context, *, is_optimistic: bool = False) -> str:
    """The preferences of the subscription `s` as jsonb; null where there are none that it takes.

    Optimistic, the statement fails for a document that jsonb does not take.
    """
    document = context.sources.subscriptions.columns.get("preferences")
    if document is None:
        return "NULL::jsonb"
    value = context.sources.subscriptions.value("preferences", "s")
    if document.base == "jsonb" or is_optimistic:
        return f"{value}::jsonb"
    return f"migration.try_jsonb({value}::text)"
