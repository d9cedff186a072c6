"""What must be there, said once for the verification, in words of its own; no step uses it."""

from __future__ import annotations

from models.dashboard.legacy import exact, optional, word
from models.engine.checks.verification import Check, wrong_values
from models.engine.source import SourceTable
from models.engine.step import Context
from models.postgres.catalog import TEXT_TYPES

# Over `a` (assignment), `l` (usage log) and `e` (expected: user_id, tool_id), each perhaps null.
_HANGING = (
    *wrong_values(
        "tool_assignments",
        "a.tool_id IS NOT NULL AND (l.id IS NULL OR l.session_id = :own_run)",
        {
            "assigned_by": ("a.assigned_by::text", "{assigned_by}"),
            "permissions": ("a.permissions::jsonb", "{full_access}"),
            "expires_at": ("a.expires_at", "NULL"),
        },
    ),
    Check(
        "wrong_owner",
        "tool_usage_logs",
        "",
        "l.id IS NOT NULL AND (l.user_id <> e.user_id OR l.tool_id <> e.tool_id)",
        "concat('user ', e.user_id, ', tool ', e.tool_id)",
        "concat('user ', l.user_id, ', tool ', l.tool_id)",
    ),
    *wrong_values(
        "tool_usage_logs",
        "l.id IS NOT NULL",
        {
            "action": ("l.action", "'migration'"),
            "credits_used": ("l.credits_used", "0"),
            "status": ("l.status", "'completed'"),
        },
    ),
)


# The keys of the target rows of a tool, by table.
TOOL_KEYS = {
    "ai_tools": "e.tool_id",
    "tool_assignments": "concat('tool ', e.tool_id, ', user ', e.user_id)",
    "tool_usage_logs": "e.usage_id",
}


def tool_checks(columns: dict[str, tuple[str, str]]) -> list[Check]:
    """Checks of a tool `t` in the suite `home` and of what hangs on it; `columns` as above.

    A tool that the new application has changed since is left alone, unless this run made it.
    """
    return [
        Check(
            "wrong_owner",
            "ai_tools",
            "",
            "t.id IS NOT NULL AND home.user_id IS DISTINCT FROM e.user_id",
            "e.user_id",
            "home.user_id",
        ),
        *wrong_values(
            "ai_tools",
            "t.id IS NOT NULL AND (l.session_id = :own_run"
            " OR t.updated_at IS NOT DISTINCT FROM t.created_at)",
            {
                "tool_type": ("t.tool_type", "'gpt'"),
                "pricing_tier": ("t.pricing_tier::text", "'free'"),
                "credits_cost": ("t.credits_cost", "0"),
                "requires_approval": ("t.requires_approval", "false"),
                **columns,
            },
        ),
        *_HANGING,
    ]


# The organization and the department of users who have none: the oldest of their names.
_HOME = """
  SELECT (array_agg(o.id ORDER BY o.created_at, o.id, d.created_at, d.id))[1]::text
      AS organization_id,
    (array_agg(d.id ORDER BY o.created_at, o.id, d.created_at, d.id))[1]::text AS department_id
  FROM {organizations} o
  LEFT JOIN {departments} d ON d.organization_id = o.id AND d.name = 'General'
  WHERE o.name = 'Default Organization'"""


def expressions(context: Context, *, is_optimistic: bool = False) -> dict[str, str]:
    """What must be there, as SQL; of a user `u`, a subscription `s`, and `role` with its word.

    Optimistic, the statement fails for preferences that jsonb does not take; else they are null.
    """
    users, subscriptions = context.sources.users, context.sources.subscriptions
    status = word(exact(subscriptions, "status", "'active'"))
    active = optional(subscriptions, "is_active", "NULL", alias="s")
    document = _preferences(subscriptions, is_optimistic=is_optimistic)
    return {
        "home": context.render(_HOME),
        "role": word(exact(users, "role", "NULL", alias="u")),
        "user_type": "CASE WHEN role.name IN ('student', 'teacher', 'admin', 'developer')"
        " THEN role.name ELSE 'student' END",
        "suite_suffix": "'''s Suite'",
        "suite_configuration": r"""CAST('{"auto_configuration"\: true, "default_tools"\: [],"""
        r""" "preferences"\: {}}' AS jsonb)""",
        "version": exact(subscriptions, "version", "NULL"),
        "is_active": f"({status} IS NOT DISTINCT FROM 'active'"
        f" AND {active}::boolean IS DISTINCT FROM false)",
        "configuration": f"coalesce(nullif({document}, 'null'), '{{}}')",
        "full_access": r"""CAST('{"full_access"\: true}' AS jsonb)""",
        "assigned_by": _system_assigner(context),
    }


def _system_assigner(context: Context) -> str:
    """What `assigned_by` must hold: null where it can only hold a user's key."""
    table = context.target.table("tool_assignments")
    points_at_user = table.key_on("assigned_by") is not None
    is_text = table.columns["assigned_by"].base in TEXT_TYPES
    return "NULL" if points_at_user or not is_text else "'system'"


def _preferences(subscriptions: SourceTable, *, is_optimistic: bool) -> str:
    document = subscriptions.columns.get("preferences")
    if document is None:
        return "NULL::jsonb"
    value = subscriptions.value("preferences", "s")
    if document.base == "jsonb" or is_optimistic:
        return f"{value}::jsonb"
    return f"migration.try_jsonb({value}::text)"
