"""A page of projects at a glance: whether each is plainly what it must be, in one statement.

What hangs on a project's tool is in the sums of its owner's page (`users/checksum.py`). Where one
project is not plainly right, `projects_verification.py` compares the page and says what is wrong.
"""

from __future__ import annotations

from models.dashboard import ids
from models.dashboard.projects.verify import wanted
from models.engine.checks.verification import newest_images
from models.engine.step import Context, Scope

_TALLY = """
SELECT count(*) AS projects, count(q.legacy_key) AS projects_quarantined,
  coalesce(bool_and(coalesce(CASE
    WHEN q.legacy_key IS NOT NULL THEN t.id IS NULL
    WHEN p.is_template IS NULL OR NOT EXISTS ({project_owner}) OR p.user_id::text IN (
      SELECT o.legacy_key FROM migration.quarantine o
      WHERE o.entity = 'user' AND o.state IN ('open', 'accepted')) THEN false
    WHEN btrim(coalesce({active_gpt}, ''), :blanks) = '' THEN t.id IS NULL AND b.was IS NULL
    ELSE {active_gpt} = t.id::text AND t.name = coalesce({wanted}, t.name) AND t.is_active
      AND t.version IS NULL AND t.configuration::jsonb
        = jsonb_build_object('project_id', p.id::text, 'gpt_id', t.name)
  END, false)), true) AS matches
FROM {projects} p
LEFT JOIN migration.quarantine q ON q.entity = 'project' AND q.legacy_key = p.id::text
  AND q.state IN ('open', 'accepted')
LEFT JOIN LATERAL (SELECT o.* FROM {ai_tools} o WHERE o.id = {tool_id} OFFSET 0) AS t ON true
LEFT JOIN {images} AS b ON b.legacy_key = p.id::text
WHERE {scope}
"""


def statement(context: Context, scope: Scope) -> str:
    """The statement that counts one page of projects, and says whether all are plainly right."""
    key = context.sources.projects.columns["id"].base
    switched = "i.was ? 'active_gpt_id'"
    return context.render(
        _TALLY,
        images=newest_images(context, "project", context.sources.projects, scope, switched),
        wanted=wanted(context, "(b.was ->> 'active_gpt_id')", "p.user_id"),
        scope=scope.condition("p.id", key),
        tool_id=ids.id_of(context.sources, ids.PROJECT_TOOL, "p.id", key),
    )
