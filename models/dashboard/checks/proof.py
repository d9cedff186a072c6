"""How the accounting tells that a row of the dashboard is migrated, by the target's rows alone."""

from __future__ import annotations

from models.dashboard import ids
from models.engine.checks.answers import Proof
from models.engine.step import Context

# What each migrated row has, whichever run migrated it: a user the grant (or a before-image, where
# only the grant is gone: the reconciliation names it), a subscription its tool, a project a value
# for the new column, a tool where it has a GPT, and an owner who is migrated.
_JOINS = {
    "user": "LEFT JOIN {credit_logs} m ON m.id {logs_exactly} = ({grant_id}) {logs_exactly}",
    "subscription": "LEFT JOIN {ai_tools} m ON m.id {tools_exactly} = ({tool_id}) {tools_exactly}",
    "project": """
LEFT JOIN {ai_tools} m ON m.id {tools_exactly} = {tool_named} {tools_exactly}
LEFT JOIN {users} o ON o.id = t.user_id
LEFT JOIN quarantined_rows oa ON oa.entity = 'user' AND oa.legacy_key = t.user_id::text COLLATE "C"
""",
}
_IS_MIGRATED = {
    "user": "(m.id IS NOT NULL OR EXISTS (SELECT FROM migration.before_images i"
    " WHERE i.entity = 'user' AND i.legacy_key = t.id::text))",
    "subscription": "m.id IS NOT NULL",
    "project": "{is_switched} AND o.id IS NOT NULL AND oa.legacy_key IS NULL"
    " AND ({has_tool} OR btrim(coalesce(t.active_gpt_id, ''), :blanks) = '')",
}
# Before the switch a project names its GPT, and its tool is found by its own key.
_TOOL_TO_BE = "LEFT JOIN {ai_tools} own ON own.id {tools_exactly} = {project_tool} {tools_exactly}"


def proof(context: Context, entity: str) -> Proof:
    """Joins and condition for the rows `t` of one source."""
    key = context.sources[entity].key.base
    exactly = {
        name: "" if ids.integers(context.sources, table) else 'COLLATE "C"'
        for name, table in (("logs_exactly", "credit_logs"), ("tools_exactly", "ai_tools"))
    }
    is_canary = context.is_canary and entity == "project"
    joins = context.render(
        _JOINS[entity] + (_TOOL_TO_BE if is_canary else ""),
        **exactly,
        tool_named=ids.named(context.sources, "ai_tools", "t.active_gpt_id"),
        grant_id=ids.id_of(context.sources, ids.GRANT, "t.id", key),
        tool_id=ids.id_of(context.sources, ids.SUBSCRIPTION_TOOL, "t.id", key),
        project_tool=ids.id_of(context.sources, ids.PROJECT_TOOL, "t.id", key),
    )
    condition = _IS_MIGRATED[entity].format(
        is_switched="true" if is_canary else "t.is_template IS NOT NULL",
        has_tool="(m.id IS NOT NULL OR own.id IS NOT NULL)" if is_canary else "m.id IS NOT NULL",
    )
    return Proof(joins, condition)
