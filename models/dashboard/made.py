"""The rows that the rules make, said once for whatever writes them, refreshes them or undoes them.

Verification says the same in its own words, in `checks/expected.py`, and uses nothing of this.
"""

from __future__ import annotations

from models.dashboard.legacy import exact, optional, word
from models.dashboard.schema import ENUMS
from models.engine.source import SourceTable
from models.engine.step import Context
from models.postgres.catalog import TEXT_TYPES

SUITE_SUFFIX = "'''s Suite'"

_HOME = """
  SELECT o.id AS organization_id, d.id AS department_id
  FROM {organizations} o LEFT JOIN {departments} d
    ON d.organization_id = o.id AND d.name = {default_department}
  WHERE o.name = {default_organization}
  ORDER BY o.created_at, o.id, d.created_at, d.id LIMIT 1"""

_TOOLS = """
  INSERT INTO {ai_tools} AS t (id, name, tool_type, version, configuration, pricing_tier,
    credits_cost, is_active, requires_approval, created_at, updated_at, suite_id)
  SELECT s.tool_id, s.gpt_id, 'gpt', s.version, s.configuration::{tool_json},
    CAST('free' AS {tool_tier}), 0, s.is_active, false, now(), now(), s.suite_id
  FROM"""

_ASSIGNMENTS = """
  INSERT INTO {tool_assignments} (tool_id, user_id, assigned_by, assigned_at, permissions)
  SELECT s.tool_id, s.user_id, {assigned_by}, now(), {full_access}
  FROM"""

_USAGE_LOGS = """
  INSERT INTO {tool_usage_logs} (id, user_id, tool_id, session_id, action, parameters,
    credits_used, status, started_at, completed_at, duration)
  SELECT s.usage_id, s.user_id, s.tool_id, :run_id, 'migration', '{{}}', 0, 'completed',
    now(), now(), 0
  FROM"""


def expressions(context: Context, *, is_optimistic: bool = False) -> dict[str, str]:
    """The rules' values as SQL, and the INSERTs of what a legacy row becomes, up to their FROM.

    The INSERTs read a relation `s` of (tool_id, usage_id, user_id, suite_id, gpt_id, version,
    is_active, configuration). `user_type` is that of a relation `role` with the role as a word,
    `tool_configuration` that of a relation `s` with the preferences. Optimistic, a statement fails
    for preferences that a json column holds and jsonb refuses.
    """
    users, subscriptions = context.sources.users, context.sources.subscriptions
    types = ", ".join(f"'{name}'" for name in ENUMS["user_type"])
    values = {
        "default_organization": "'Default Organization'",
        "default_department": "'General'",
        "role": word(exact(users, "role", "NULL", alias="u")),
        "user_type": f"CASE WHEN role.name IN ({types}) THEN role.name ELSE 'student' END",
        "suite_suffix": SUITE_SUFFIX,
        "suite_configuration": r"""'{"default_tools"\: [], "preferences"\: {},"""
        r""" "auto_configuration"\: true}'""",
        "version": exact(subscriptions, "version", "NULL"),
        "is_active": _is_active(subscriptions),
        "preferences": _preferences(subscriptions, is_optimistic=is_optimistic),
        "tool_configuration": "CASE WHEN jsonb_typeof(s.preferences) = 'null' THEN '{}'"
        " ELSE s.preferences END",
        "full_access": r"""'{"full_access"\: true}'""",
        "assigned_by": _assigned_by(context),
        "tool_json": context.type_of("ai_tools", "configuration"),
        "tool_tier": context.type_of("ai_tools", "pricing_tier"),
        "user_type_type": users.columns["user_type"].type,
        "billing_tier_type": users.columns["billing_tier"].type,
    }
    return values | {
        name: context.render(sql, **values)
        for name, sql in {
            "home": _HOME,
            "insert_tools": _TOOLS,
            "insert_assignments": _ASSIGNMENTS,
            "insert_usage_logs": _USAGE_LOGS,
        }.items()
    }


def _preferences(subscriptions: SourceTable, *, is_optimistic: bool) -> str:
    """The preferences as jsonb: a JSON null for SQL's null, null for what jsonb refuses."""
    column = subscriptions.columns.get("preferences")
    if column is None:
        return "'{}'::jsonb"
    name = subscriptions.value("preferences", "s")
    if column.base == "jsonb" or (column.base == "json" and is_optimistic):
        return f"coalesce({name}::jsonb, 'null'::jsonb)"
    return f"CASE WHEN {name} IS NULL THEN 'null'::jsonb ELSE migration.try_jsonb({name}::text) END"


def _assigned_by(context: Context) -> str:
    """Who assigned a tool: `system`, or null where the column points at a user."""
    table = context.target.table("tool_assignments")
    is_text = table.columns["assigned_by"].base in TEXT_TYPES
    return "'system'" if is_text and not table.key_on("assigned_by") else "NULL"


def _is_active(subscriptions: SourceTable) -> str:
    status = word(exact(subscriptions, "status", "'active'"))
    active = optional(subscriptions, "is_active", "NULL", alias="s")
    return f"coalesce({status} = 'active', false) AND {active}::boolean IS NOT FALSE"
