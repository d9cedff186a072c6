"""What the application changed of projects, or of their owners, replayed project by project."""

from __future__ import annotations

import functools

from models.dashboard import ids
from models.dashboard.projects.apply import Projects
from models.dashboard.projects.switch import Switch
from models.engine.checks import judgement
from models.engine.live.replay import Replay
from models.engine.rollback import lock_rows
from models.engine.step import Context, Counts, Scope, add, only_written
from models.postgres.keys import key_cast

_FORGET_PROJECTS = """
DELETE FROM migration.changes c
WHERE c.entity = 'project' AND c.legacy_key = ANY(CAST(:keys AS text[]))
"""

# What a project that is gone has left behind, in this run.
_LEFT = """
SELECT 'extra', 'project', k.id::text, 'ai_tools', 'gone'
FROM unnest(CAST(:keys AS {kind}[])) AS k(id)
LEFT JOIN {projects} p ON p.id = k.id
JOIN {ai_tools} t ON t.id = {tool_id}
JOIN {tool_usage_logs} l ON l.id = {usage_id} AND l.session_id = :own_run
WHERE p.id IS NULL
"""


class ChangedProjects(Replay, Projects):
    """Projects with a change of their own, or of their owner."""

    name = "changed_projects"
    changes = ("project",)

    def prepare(self, context: Context, scope: Scope) -> Counts:
        context.execute(_FORGET_PROJECTS, scope)
        # Before a tool locks its user by a foreign key: who deletes a user with all projects has
        # locked those first, and would wait for the user while the switch here waits for them.
        lock_rows(context, context.sources.projects, scope)
        return super().prepare(context, scope)

    def apply(self, context: Context, scope: Scope) -> Counts:
        found = [super().apply(context, scope)]
        if not context.is_canary:
            found.append(Switch().apply(context, scope))
        return only_written(functools.reduce(add, found))

    def recheck(self, context: Context, scope: Scope) -> list[str]:
        key = context.sources.projects.key.base
        left = context.render(
            _LEFT,
            kind=key_cast(key),
            tool_id=ids.id_of(context.sources, ids.PROJECT_TOOL, "k.id", key),
            usage_id=ids.id_of(context.sources, ids.PROJECT_USAGE, "k.id", key),
        )
        return [*self.details(context, scope), left, *judgement.of_rows(context, "project", scope)]
