"""The second opinion on projects, after the switch. Shares no statement with the steps."""

from __future__ import annotations

from models.dashboard import ids
from models.dashboard.checks import expected
from models.dashboard.checks.expected import tool_checks
from models.engine.checks.verification import Check, with_checks
from models.engine.step import Context

_CHECKS = (
    Check("wrong_value", "projects", "is_template", "e.is_template IS NULL"),
    Check(
        "missing",
        "quarantine",
        "no owner",
        "NOT EXISTS (SELECT FROM {users} u WHERE u.id = e.user_id)",
    ),
    Check(
        "missing",
        "quarantine",
        "owner",
        "EXISTS (SELECT FROM migration.quarantine o WHERE o.entity = 'user'"
        " AND o.legacy_key = e.user_id::text AND o.state IN ('open', 'accepted'))",
    ),
    Check(
        "wrong_value",
        "projects",
        "active_gpt_id",
        "CASE WHEN e.had_gpt THEN e.active_gpt_id IS DISTINCT FROM e.tool_id::text"
        " ELSE e.has_gpt AND ({is_key} OR c.id IS NULL OR NOT (c.id = e.tool_id"
        " OR EXISTS (SELECT FROM {ai_suites} o"
        " WHERE o.id = c.suite_id AND o.user_id = e.user_id OFFSET 0)"
        " OR EXISTS (SELECT FROM {tool_assignments} o"
        " WHERE o.tool_id = c.id AND o.user_id = e.user_id OFFSET 0))) END",
    ),
    Check("missing", "ai_tools", "", "e.had_gpt AND t.id IS NULL"),
    Check("missing", "tool_assignments", "", "e.had_gpt AND a.tool_id IS NULL"),
    Check("missing", "tool_usage_logs", "", "e.had_gpt AND l.id IS NULL"),
    *(
        Check(
            "extra", table, "", f"l.session_id = :own_run AND NOT e.has_gpt AND {id_} IS NOT NULL"
        )
        for table, id_ in (
            ("ai_tools", "t.id"),
            ("tool_assignments", "a.tool_id"),
            ("tool_usage_logs", "l.id"),
        )
    ),
    *tool_checks(
        {
            "name": "t.name IS DISTINCT FROM coalesce({wanted}, t.name)",
            "version": "t.version IS NOT NULL",
            "is_active": "t.is_active IS DISTINCT FROM true",
            "configuration": "t.configuration::jsonb IS DISTINCT FROM"
            " jsonb_build_object('project_id', e.legacy_key, 'gpt_id', t.name)",
        },
    ),
    Check(
        "extra",
        "tool_usage_logs",
        "duplicate",
        "EXISTS (SELECT FROM {tool_usage_logs} o"
        " WHERE o.tool_id = t.id AND o.action = 'migration' AND o.id <> e.usage_id)",
    ),
    Check(
        "extra",
        "tool_assignments",
        "",
        "EXISTS (SELECT FROM {tool_assignments} o WHERE o.tool_id = t.id"
        " AND o.user_id <> e.user_id AND o.assigned_by IS NOT DISTINCT FROM {assigned_by})",
    ),
    Check(
        "extra",
        "ai_tools",
        "duplicate",
        "EXISTS (SELECT FROM {ai_tools} o WHERE o.suite_id = t.suite_id AND o.id <> t.id"
        " AND o.name = t.name AND o.configuration::jsonb = t.configuration::jsonb)",
    ),
)

# The GPT that a project had is in the before-image of the run that switched it. A project without
# one must point at a tool of its owner, if at anything: the new application made it, or its images
# are gone. So must one that an earlier run switched: the new application may have chosen another.
_PROJECTS = """
SELECT found.kind, 'project', e.legacy_key, found.target_table, found.detail
FROM (
  SELECT p.id::text AS legacy_key, p.user_id, {active_gpt} AS active_gpt_id,
    p.is_template,
    {tool_id} AS tool_id, {usage_id} AS usage_id, b.was,
    btrim(coalesce(b.was ->> 'active_gpt_id', ''), :blanks) <> ''
      AND (b.run_id = :own_run OR {active_gpt} = ({tool_id})::text) AS had_gpt,
    btrim(coalesce({active_gpt}, ''), :blanks) <> '' AS has_gpt
  FROM {projects} p LEFT JOIN LATERAL (
    SELECT i.was, i.run_id FROM migration.before_images i
    WHERE i.entity = 'project' AND i.legacy_key = p.id::text
      AND i.was ? 'active_gpt_id' ORDER BY i.run_id DESC LIMIT 1
  ) AS b ON true
  WHERE {scope} AND NOT EXISTS (
    SELECT FROM migration.quarantine q WHERE q.entity = 'project'
      AND q.legacy_key = p.id::text AND q.state IN ('open', 'accepted'))
) AS e
LEFT JOIN {ai_tools} t ON t.id = e.tool_id
LEFT JOIN {ai_tools} c ON c.id = {named}
LEFT JOIN {ai_suites} home ON home.id = t.suite_id
LEFT JOIN {tool_assignments} a ON a.tool_id = e.tool_id AND a.user_id = e.user_id
LEFT JOIN {tool_usage_logs} l ON l.id = e.usage_id
CROSS JOIN LATERAL (VALUES
  {checks}
) AS found(kind, target_table, detail, differs)
WHERE ({differs}) AND found.differs
"""

# A project that the database refuses in the switch keeps the tool that was made for it before.
_SET_ASIDE = """
SELECT 'extra', 'project', p.id::text, 'tool_usage_logs', 'quarantined'
FROM migration.quarantine q
JOIN {projects} p ON p.id::text = q.legacy_key
JOIN {tool_usage_logs} l ON l.id = {usage_id} AND l.session_id = :own_run
WHERE q.entity = 'project' AND q.state IN ('open', 'accepted') AND q.reason <> 'rejected'
  AND {scope}
UNION ALL SELECT 'extra', 'project', p.id::text, 'ai_tools', 'quarantined'
FROM migration.quarantine q
JOIN {projects} p ON p.id::text = q.legacy_key
JOIN {ai_tools} t ON t.id = {tool_id}
WHERE q.entity = 'project' AND q.state IN ('open', 'accepted') AND q.reason <> 'rejected'
  AND {scope}
  AND t.created_at >= (SELECT r.started_at AT TIME ZONE 'UTC' FROM migration.runs r
                       WHERE r.id = :own_run)
"""


# The second opinion on the GPT that a key of a subscription stands for: of all that the owner has.
# A key that names none of them may be that of one that is gone: then any name is right.
_WANTED = """(SELECT coalesce(min(x.gpt) FILTER (WHERE btrim(x.gpt, :blanks) <> ''),
      CASE WHEN {held} !~ '^-?[0-9]+$' THEN {held} END)
    FROM (SELECT {gpt_id} AS gpt FROM {subscriptions} s
      WHERE s.user_id = {owner} AND concat(s.id) = {held}) AS x)"""


def wanted(context: Context, held: str, owner: str) -> str:
    """SQL for the name of the tool of a project of this owner that held this text."""
    if context.sources.shape.options.get("active_gpt") != "subscription":
        return held
    return context.render(_WANTED, held=held, owner=owner)


_IS_KEY = """(e.was IS NULL AND e.active_gpt_id IN (
    SELECT concat(s.id) FROM {subscriptions} s WHERE s.user_id = e.user_id))"""


def is_key(context: Context) -> str:
    """SQL: a project that was never switched holds the key of one of its owner's subscriptions."""
    is_mapped = context.sources.shape.options.get("active_gpt") == "subscription"
    return context.render(_IS_KEY) if is_mapped else "false"


def details(context: Context, condition: str) -> list[str]:
    """The statements over the projects `p` that the condition picks."""
    key = context.sources.projects.columns["id"].base
    return [
        context.render(
            sql,
            scope=condition,
            tool_id=ids.id_of(context.sources, ids.PROJECT_TOOL, "p.id", key),
            usage_id=ids.id_of(context.sources, ids.PROJECT_USAGE, "p.id", key),
            wanted=wanted(context, "(e.was ->> 'active_gpt_id')", "e.user_id"),
            named=ids.named(context.sources, "ai_tools", "e.active_gpt_id"),
            is_key=is_key(context),
            **expected.expressions(context),
        )
        for sql in (with_checks(_PROJECTS, _CHECKS), _SET_ASIDE)
    ]
