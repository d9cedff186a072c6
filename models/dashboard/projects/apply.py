"""Rules 6, 8 and 9 for projects: the tool of the active GPT, its assignment and its usage log.

Only rows are created here. The projects themselves are written in `switch.py`, later and fast:
until then the old application reads `active_gpt_id` as its GPT.
"""

from __future__ import annotations

import functools

from models.dashboard import ids, legacy, made
from models.dashboard.projects import changes, checksum, verify
from models.dashboard.projects.choice import gpt_of, is_choice, may_rename
from models.dashboard.sources import PROJECTS
from models.dashboard.tools import is_still_ours
from models.engine.step import Context, Counts, Scope, Step, add, counts
from models.ledger import selection
from models.postgres.keys import key_cast

# A project that points at a tool of its owner is migrated, or the new application made it; anything
# else that is not blank is a choice of GPT, also where some tool has that id by chance, and a tool
# that an earlier run made takes the newer choice. One that points at its own tool stands for the
# GPT of before, should that tool be missing.
_MIGRATE = """
WITH project AS MATERIALIZED (
  SELECT p.id, p.id::text AS legacy_key, {tool_id} AS tool_id, {usage_id} AS usage_id,
    u.id AS user_id, own.id AS suite_id, {chosen} AS gpt_id,
    NOT {chosen_is_blank}
      AND (b.gpt_id IS NOT NULL OR g.id IS DISTINCT FROM ({tool_id})::text)
      AND ({is_choice} OR NOT EXISTS (
        SELECT FROM {ai_tools} t WHERE t.id = {named} AND (t.id = {tool_id}
          OR EXISTS (SELECT FROM {ai_suites} h
                     WHERE h.id = t.suite_id AND h.user_id = u.id OFFSET 0)
          OR EXISTS (SELECT FROM {tool_assignments} a
                     WHERE a.tool_id = t.id AND a.user_id = u.id OFFSET 0))
        OFFSET 0)) AS has_gpt,
    CASE WHEN u.id IS NULL THEN 'owner_missing'
         WHEN own.id IS NULL OR q.legacy_key IS NOT NULL THEN 'owner_quarantined' END AS reason
  FROM {projects} p
  CROSS JOIN LATERAL (SELECT {active_gpt} AS id) AS g
  LEFT JOIN LATERAL ({project_owner}) AS u ON true
  LEFT JOIN migration.quarantine q ON q.entity = 'user' AND q.legacy_key = u.id::text
    AND q.state IN ('open', 'accepted')
  LEFT JOIN LATERAL ({oldest_suite}) AS own ON true
  LEFT JOIN LATERAL (
    SELECT i.was ->> 'active_gpt_id' AS gpt_id FROM migration.before_images i
    WHERE g.id = ({tool_id})::text AND i.entity = 'project' AND i.legacy_key = p.id::text
      AND i.was ? 'active_gpt_id'
    ORDER BY i.run_id DESC LIMIT 1
  ) AS b ON true
  WHERE {scope}
),
choice AS MATERIALIZED (
  SELECT p.*, NULL AS version, true AS is_active,
    jsonb_build_object('project_id', p.legacy_key, 'gpt_id', p.gpt_id) AS configuration
  FROM project p WHERE p.has_gpt AND p.reason IS NULL
),
tool AS ({insert_tools} choice s {unless_there_is_tool} RETURNING xmax = 0 AS is_new),
assignment AS ({insert_assignments} choice s {unless_there_is_assignment} RETURNING 1),
usage_log AS ({insert_usage_logs} choice s {unless_there_is_id} RETURNING 1),
new_quarantine AS (
  INSERT INTO migration.quarantine AS q
    (entity, legacy_key, run_id, batch_id, reason, message, row_hash)
  SELECT 'project', p.legacy_key, :run_id, :batch_id, p.reason, CASE p.reason
    WHEN 'owner_missing' THEN 'The owner does not exist.' ELSE 'The owner is quarantined.' END,
    {row_hash}
  FROM project p WHERE p.reason IS NOT NULL
  {quarantine_again}
),
resolved AS (
  UPDATE migration.quarantine q SET state = 'resolved', changed_at = clock_timestamp()
  WHERE q.state IN ('open', 'accepted') AND q.entity = 'project'
    AND q.legacy_key = ANY(ARRAY(SELECT p.legacy_key FROM project p WHERE p.reason IS NULL))
)
SELECT count(*) AS projects,
  count(*) FILTER (WHERE reason IS NOT NULL) AS projects_quarantined,
  (SELECT count(*) FROM tool WHERE is_new) AS ai_tools,
  (SELECT count(*) FROM assignment) AS tool_assignments,
  (SELECT count(*) FROM usage_log) AS tool_usage_logs
FROM project
"""


# What an earlier run made takes the newer choice.
_RENAME = """UPDATE SET name = excluded.name, configuration = excluded.configuration
  WHERE t.name <> excluded.name"""


class Projects(Step):
    """Creates the tool of every project that has an active GPT."""

    name = "projects"
    stage = "projects"
    queue = "migration.projects"
    source = PROJECTS
    entity = "project"
    weight = 30
    is_verified = True
    undone_by = "undo_users"
    resolves = True

    def apply(self, context: Context, scope: Scope) -> Counts:
        names = _expressions(context, scope)
        found = list(changes.before(context, scope, names)) if scope.again else []
        found.append(counts(context.execute(_MIGRATE, scope, **names).one()))
        if context.may_be_there(scope):
            found += changes.after(context, scope, names)
        return functools.reduce(add, found)

    def details(self, context: Context, scope: Scope) -> list[str]:
        return verify.details(context, _condition(context, scope))

    def account(self, context: Context, scope: Scope) -> str:
        return checksum.statement(context, scope)


def _condition(context: Context, scope: Scope) -> str:
    """The projects `p` of a scope; in a canary without those that moved to a user outside it."""
    of_scope = scope.condition("p.id", context.sources.projects.columns["id"].base)
    return f"{of_scope} AND {selection.condition(context, context.sources.projects, 'p')}"


def _expressions(context: Context, scope: Scope) -> dict[str, str]:
    key = context.sources.projects.columns["id"].base
    return {
        **made.expressions(context),
        "scope": _condition(context, scope),
        "is_selected": selection.condition(context, context.sources.projects, "p"),
        "unless_there_is_tool": scope.unless_there("id", _RENAME),
        "unless_there_is_id": scope.unless_there("id"),
        "unless_there_is_assignment": scope.unless_there("tool_id, user_id"),
        "kind": key_cast(key),
        "chosen": gpt_of(context, "coalesce(b.gpt_id, g.id)", "p.user_id"),
        "chosen_is_blank": legacy.is_blank("g.id"),
        "renamed": (renamed := gpt_of(context, "b.gpt_id", "p.user_id")),
        "may_rename": may_rename(context, "b.gpt_id", renamed),
        "is_choice": is_choice(context, "g.id", "u.id", "p.id"),
        "named": ids.named(context.sources, "ai_tools", "g.id"),
        "row_hash": context.sources.hash_by_key("project", "p.id"),
        "tool_id": ids.id_of(context.sources, ids.PROJECT_TOOL, "p.id", key),
        "usage_id": ids.id_of(context.sources, ids.PROJECT_USAGE, "p.id", key),
        "tool_id_of_key": ids.id_of(context.sources, ids.PROJECT_TOOL, "k.id", key),
        "usage_id_of_key": ids.id_of(context.sources, ids.PROJECT_USAGE, "k.id", key),
        "still_ours": is_still_ours(context),
    }
