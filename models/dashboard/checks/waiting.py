"""What differs only because a change of its row, or of its owner, is not replayed yet."""

from __future__ import annotations

from models.dashboard import ids
from models.dashboard.projects.choice import names_subscriptions
from models.engine.step import Context
from models.postgres.keys import key_cast

# By the row's own key, or by its owner: a tool that has lost its subscription still has a suite.
_WAITING = """
WITH owned AS (
  SELECT f.entity, f.legacy_key, f.target_table, f.legacy_key AS owner_key
  FROM found f WHERE f.entity = 'user'
  UNION SELECT f.entity, f.legacy_key, f.target_table, s.user_id::text
  FROM found f JOIN {subscriptions} s ON s.id = {subscription_key}
  WHERE f.entity = 'subscription'
  UNION SELECT f.entity, f.legacy_key, f.target_table, p.user_id::text
  FROM found f JOIN {projects} p ON p.id = {project_key} WHERE f.entity = 'project'
  UNION SELECT f.entity, f.legacy_key, f.target_table, h.user_id::text
  FROM found f JOIN {ai_tools} t ON t.id = {tool} JOIN {ai_suites} h ON h.id = t.suite_id
  WHERE f.target_table = 'ai_tools'
  UNION SELECT f.entity, f.legacy_key, f.target_table, a.user_id::text
  FROM found f JOIN {tool_assignments} a ON a.tool_id = {tool}
  WHERE f.target_table = 'tool_assignments'
  UNION SELECT f.entity, f.legacy_key, f.target_table, l.user_id::text
  FROM found f JOIN {tool_usage_logs} l ON l.id = {usage_log}
)
  SELECT o.entity, o.legacy_key, o.target_table
  FROM owned o JOIN migration.changes c ON c.owner_key = o.owner_key
  WHERE c.entity = 'user' OR c.entity = 'subscription' AND (o.entity <> 'project' OR {follows})
  UNION ALL
  SELECT f.entity, f.legacy_key, f.target_table FROM found f JOIN migration.changes c
    ON c.entity = f.entity AND c.legacy_key = f.legacy_key
  UNION ALL
  SELECT f.entity, f.legacy_key, f.target_table FROM found f JOIN migration.changes c
    ON c.entity = 'project' AND f.entity = 'project' AND f.legacy_key = ({tool_of_project})::text
"""


def waiting(context: Context) -> str:
    """SQL for the rows of `found` whose change waits: entity, legacy_key, target_table."""
    sources = context.sources
    base = sources.projects.key.base
    key = f"(CASE WHEN c.entity = 'project' THEN CAST(c.legacy_key AS {key_cast(base)}) END)"
    return context.render(
        _WAITING,
        tool_of_project=ids.id_of(sources, ids.PROJECT_TOOL, key, base),
        follows=str(names_subscriptions(sources)).lower(),
        tool=ids.ours(sources, "ai_tools", "f.legacy_key"),
        usage_log=ids.ours(sources, "tool_usage_logs", "f.legacy_key"),
        project_key=sources.key_named("project", "f.legacy_key"),
        subscription_key=sources.key_named("subscription", "f.legacy_key"),
    )
