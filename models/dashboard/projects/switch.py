"""Rule 6, the moment itself: projects point at their tools, and `is_template` is never null.

The GPT that a project had goes into the before-image in the same statement.
"""

from __future__ import annotations

from models.dashboard import ids
from models.dashboard.projects.choice import gpt_of
from models.dashboard.sources import PROJECTS
from models.engine.step import Context, Counts, Scope, Step

# Only a tool made for this very choice is switched to. `u` is the row as it is locked: a GPT that
# somebody chose since the snapshot stays, and the change is replayed like any other.
_SWITCH = """
WITH project AS MATERIALIZED (
  SELECT p.id, p.id::text AS legacy_key, {active_gpt} AS active_gpt_id,
    p.is_template, t.id AS tool_id
  FROM {projects} p LEFT JOIN LATERAL (
    SELECT o.id, o.name FROM {ai_tools} o WHERE o.id = {tool_id} OFFSET 0
  ) AS t ON t.name = {chosen}
  WHERE {scope} AND (p.is_template IS NULL OR t.id IS NOT NULL) AND NOT EXISTS (
    SELECT FROM migration.quarantine q WHERE q.entity = 'project' AND q.legacy_key = p.id::text
      AND q.state IN ('open', 'accepted'))
),
image AS (
  INSERT INTO migration.before_images AS b (run_id, entity, legacy_key, was)
  SELECT :run_id, 'project', p.legacy_key, jsonb_strip_nulls(jsonb_build_object(
    'active_gpt_id', CASE WHEN p.tool_id IS NOT NULL THEN p.active_gpt_id END,
    'is_template', p.is_template))
  FROM project p
  {unless_there_is_image}
),
switched AS (
  UPDATE {projects} u SET
    active_gpt_id = CASE WHEN u.active_gpt_id COLLATE "default" IS NOT DISTINCT FROM p.active_gpt_id
      THEN coalesce(p.tool_id::text, u.active_gpt_id) ELSE u.active_gpt_id END,
    is_template = coalesce(u.is_template, false)
  FROM project p WHERE u.id = p.id AND {same_scope}
  RETURNING 1
)
SELECT count(*) FROM switched
"""

# A GPT chosen since the last switch is the one to go back to.
_REMEMBER = """UPDATE SET was = b.was
    || jsonb_strip_nulls(jsonb_build_object('active_gpt_id', excluded.was -> 'active_gpt_id'))"""


class Switch(Step):
    """Points the projects at their tools."""

    name = "switch"
    stage = "switch"
    queue = "migration.projects"
    source = PROJECTS
    entity = "project"
    weight = 17
    unverified = "projects are verified after the switch, by their own step"
    undone_by = "undo_projects"
    resolves = True
    hands_over = True

    def apply(self, context: Context, scope: Scope) -> Counts:
        key = context.sources.projects.columns["id"].base
        switched = context.execute(
            _SWITCH,
            scope,
            chosen=gpt_of(context, context.render("{active_gpt}"), "p.user_id"),
            scope=scope.condition("p.id", key),
            same_scope=scope.condition("u.id", key),
            unless_there_is_image=scope.unless_there("entity, legacy_key, run_id", _REMEMBER),
            tool_id=ids.id_of(context.sources, ids.PROJECT_TOOL, "p.id", key),
        ).scalar()
        return {"switched": switched}
