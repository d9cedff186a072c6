"""What a later change of a project does to its tool: taken away, moved, or made for another GPT."""

from __future__ import annotations

from collections.abc import Iterator

from models.dashboard.tools import is_untouched, remove_tools
from models.engine.step import Context, Counts, Scope

# A project that is gone (or of a user outside the canary), has no GPT any more, or whose owner is
# missing or quarantined. Or a tool without its suite: it was written while the owner's batch took
# away all that it could see.
_SURPLUS = """
  SELECT t.id, t.suite_id
  FROM unnest(CAST(:keys AS {kind}[])) AS k(id)
  JOIN {ai_tools} t ON t.id = {tool_id_of_key}
  LEFT JOIN {ai_suites} home ON home.id = t.suite_id
  LEFT JOIN {tool_usage_logs} l ON l.id = {usage_id_of_key}
  LEFT JOIN {projects} p ON p.id = k.id
  LEFT JOIN LATERAL ({project_owner}) AS u ON true
  LEFT JOIN migration.quarantine q ON q.entity = 'user' AND q.legacy_key = u.id::text
    AND q.state IN ('open', 'accepted')
  WHERE home.id IS NULL
     OR (p.id IS NULL OR ({is_selected}) IS NOT TRUE)
       AND (l.session_id = :own_run OR {untouched})
     OR p.id IS NOT NULL AND l.session_id = :own_run AND (
       {active_gpt_is_blank} OR u.id IS NULL OR q.legacy_key IS NOT NULL)
"""

# A project that is quarantined points at its GPT again; one without a GPT has none to go back to.
_RESTORE = """
WITH project AS MATERIALIZED (
  SELECT p.id, p.id::text AS legacy_key, {tool_id} AS tool_id,
    {active_gpt_is_blank} AS is_blank,
    u.id IS NULL OR q.legacy_key IS NOT NULL AS is_ownerless
  FROM {projects} p
  LEFT JOIN LATERAL ({project_owner}) AS u ON true
  LEFT JOIN migration.quarantine q ON q.entity = 'user' AND q.legacy_key = u.id::text
    AND q.state IN ('open', 'accepted')
  WHERE {scope}
),
restored AS (
  UPDATE {projects} t SET active_gpt_id = b.was ->> 'active_gpt_id',
    is_template = CASE WHEN b.was ? 'is_template' OR t.is_template THEN t.is_template END
  FROM project p CROSS JOIN LATERAL (
    SELECT i.was FROM migration.before_images i WHERE i.entity = 'project'
      AND i.legacy_key = p.legacy_key AND i.run_id = :own_run OFFSET 0
  ) AS b
  WHERE t.id = p.id AND p.is_ownerless AND t.active_gpt_id COLLATE "default" = p.tool_id::text
    AND b.was ? 'active_gpt_id'
),
image AS (
  DELETE FROM migration.before_images b USING project p
  WHERE b.entity = 'project' AND b.legacy_key = p.legacy_key AND b.run_id = :own_run
    AND p.is_ownerless AND b.legacy_key = ANY(ARRAY(SELECT k.legacy_key FROM project k))
)
UPDATE migration.before_images b SET was = b.was - 'active_gpt_id' FROM project p
WHERE b.entity = 'project' AND b.legacy_key = p.legacy_key AND b.run_id = :own_run AND p.is_blank
  AND b.legacy_key = ANY(ARRAY(SELECT k.legacy_key FROM project k))
"""

_MOVE = """
WITH expected AS MATERIALIZED (
  SELECT {tool_id} AS tool_id, {usage_id} AS usage_id, u.id AS user_id, own.id AS suite_id
  FROM {projects} p
  JOIN LATERAL ({project_owner}) AS u ON true
  JOIN LATERAL ({oldest_suite}) AS own ON true
  WHERE {scope}
),
tool AS (
  UPDATE {ai_tools} t SET suite_id = e.suite_id FROM expected e, {ai_suites} home
  WHERE t.id = e.tool_id AND home.id = t.suite_id AND home.user_id <> e.user_id
),
usage_log AS (
  UPDATE {tool_usage_logs} l SET user_id = e.user_id FROM expected e
  WHERE l.id = e.usage_id AND l.user_id <> e.user_id
),
added AS (
  INSERT INTO {tool_assignments} (tool_id, user_id, assigned_by, assigned_at, permissions)
  SELECT a.tool_id, e.user_id, a.assigned_by, a.assigned_at, a.permissions
  FROM {tool_assignments} a JOIN expected e ON e.tool_id = a.tool_id
  WHERE a.user_id <> e.user_id AND a.assigned_by IS NOT DISTINCT FROM {assigned_by}
  ON CONFLICT (tool_id, user_id) DO NOTHING
  RETURNING 1
),
removed AS (
  DELETE FROM {tool_assignments} a USING expected e
  WHERE a.tool_id = e.tool_id AND a.user_id <> e.user_id
    AND a.assigned_by IS NOT DISTINCT FROM {assigned_by}
  RETURNING 1
)
SELECT (SELECT count(*) FROM added) - (SELECT count(*) FROM removed) AS tool_assignments
"""

# A tool that is not named after the GPT that the project had; who chose another one is not here.
_RENAME = """
WITH expected AS MATERIALIZED (
  SELECT {tool_id} AS tool_id, {usage_id} AS usage_id, {renamed} AS gpt_id,
    jsonb_build_object('project_id', p.id::text, 'gpt_id', {renamed}) AS configuration
  FROM {projects} p JOIN LATERAL (
    SELECT i.was ->> 'active_gpt_id' AS gpt_id FROM migration.before_images i
    WHERE i.entity = 'project' AND i.legacy_key = p.id::text AND i.was ? 'active_gpt_id'
    ORDER BY i.run_id DESC LIMIT 1
  ) AS b ON true
  WHERE {scope} AND {active_gpt} = ({tool_id})::text AND {may_rename}
)
UPDATE {ai_tools} t SET name = e.gpt_id, configuration = e.configuration::{tool_json}
FROM expected e
WHERE t.id = e.tool_id AND {still_ours}
  AND (t.name <> e.gpt_id OR t.configuration::jsonb IS DISTINCT FROM e.configuration)
"""


def before(context: Context, scope: Scope, names: dict[str, str]) -> Iterator[Counts]:
    """What goes before the tools are written anew, for the projects of a list of keys."""
    untouched = is_untouched(context, "t", names["assigned_by"])
    yield remove_tools(context, _SURPLUS, scope, untouched=untouched, **names)
    context.execute(_RESTORE, scope, **names)


def after(context: Context, scope: Scope, names: dict[str, str]) -> Iterator[Counts]:
    """What goes after them: tools whose project has another owner now, or another name."""
    context.execute(_RENAME, scope, **names)
    yield {"rows": dict(context.execute(_MOVE, scope, **names).one()._mapping)}
