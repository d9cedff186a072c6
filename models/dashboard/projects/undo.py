"""The undo of `switch.py`: projects point at their GPT again, and `is_template` is as it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from models.dashboard import ids
from models.dashboard.sources import PROJECTS
from models.engine.rollback import NOTE, lock_rows, note_refused
from models.engine.step import Context, Counts, Scope, Step

# A project that somebody pointed at another one's tool keeps that tool.
_UNDO = """
WITH page AS MATERIALIZED (
  SELECT p.id, p.id::text AS legacy_key, {active_gpt} AS active_gpt_id,
    p.is_template, b.was,
    ({tool_id})::text AS tool_id
  FROM {projects} p LEFT JOIN migration.before_images b
    ON b.entity = 'project' AND b.legacy_key = p.id::text AND b.run_id = :run_id
  WHERE {scope}
),
decided AS MATERIALIZED (
  SELECT p.*,
    p.was ? 'active_gpt_id' AND p.active_gpt_id IS DISTINCT FROM p.was ->> 'active_gpt_id'
      AS gpt_differs,
    p.active_gpt_id IS NOT DISTINCT FROM p.tool_id OR :forced AS may_set_gpt,
    NOT p.was ? 'is_template' AND p.is_template IS NOT NULL AS template_differs,
    p.is_template IS FALSE OR :forced AS may_set_template,
    NOT :forced AND p.active_gpt_id <> p.tool_id AND EXISTS (
      SELECT FROM {tool_usage_logs} l WHERE l.session_id = :run_id
        AND l.id = {usage_id} AND l.tool_id = {named}) AS hangs
  FROM page p
),
noted AS (
  {note}
  SELECT :run_id, c.kind, 'projects', d.legacy_key, c.detail, c.holds
  FROM decided d CROSS JOIN LATERAL (
    SELECT 'changed' AS kind, 'active_gpt_id' AS detail, NULL AS holds
    WHERE d.gpt_differs AND NOT d.may_set_gpt
    UNION ALL SELECT 'changed', 'is_template', NULL
    WHERE d.template_differs AND NOT d.may_set_template
    UNION ALL SELECT 'hanging', 'active_gpt_id', d.active_gpt_id WHERE d.hangs
  ) AS c
  ON CONFLICT DO NOTHING
),
restored AS (
  UPDATE {projects} u SET
    active_gpt_id = CASE WHEN d.gpt_differs AND d.may_set_gpt
      THEN d.was ->> 'active_gpt_id' ELSE u.active_gpt_id END,
    is_template = CASE WHEN d.template_differs AND d.may_set_template
      THEN NULL ELSE u.is_template END
  FROM decided d
  WHERE u.id = d.id
    AND (d.gpt_differs AND d.may_set_gpt OR d.template_differs AND d.may_set_template)
  RETURNING 1
),
forgotten AS (
  DELETE FROM migration.before_images b USING decided d
  WHERE b.entity = 'project' AND b.legacy_key = d.legacy_key AND b.run_id = :run_id
    AND (NOT d.gpt_differs OR d.may_set_gpt) AND (NOT d.template_differs OR d.may_set_template)
)
SELECT (SELECT count(*) FROM restored) AS restored
"""


class UndoProjects(Step):
    """Gives projects back what they had before the switch."""

    name = "undo_projects"
    stage = "undo_projects"
    queue = "migration.projects"
    source = PROJECTS
    entity = "project"

    def prepare(self, context: Context, scope: Scope) -> Counts:
        lock_rows(context, context.sources.projects, scope)
        return {}

    def apply(self, context: Context, scope: Scope) -> Counts:
        key = context.sources.projects.columns["id"].base
        named = ids.named(context.sources, "ai_tools", "p.active_gpt_id")
        restored = context.execute(
            _UNDO,
            scope,
            note=NOTE,
            scope=scope.condition("p.id", key),
            tool_id=ids.id_of(context.sources, ids.PROJECT_TOOL, "p.id", key),
            named=named,
            usage_id=ids.usage_of(context.sources, named),
        ).scalar()
        return {"restored": {"projects": restored}}

    def quarantine(self, context: Context, entity: str, keys: Sequence[str], **why: Any) -> None:
        note_refused(context, "projects", keys)
