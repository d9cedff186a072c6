"""The second opinion on projects, after the switch. Shares no statement with the steps."""

from __future__ import annotations

from models.dashboard import ids
from models.dashboard.checks import expected
from models.dashboard.checks.expected import tool_checks
from models.engine.checks.verification import Check, with_checks
from models.engine.step import Context

_OTHER_LOG = (
    " FROM {tool_usage_logs} o"
    " WHERE o.tool_id = t.id AND o.action = 'migration' AND o.id <> e.usage_id"
)
_OTHER_ASSIGNMENT = (
    " FROM {tool_assignments} o WHERE o.tool_id = t.id"
    " AND o.user_id <> e.user_id AND o.assigned_by IS NOT DISTINCT FROM {assigned_by}"
)
_OTHER_TOOL = (
    " FROM {ai_tools} o WHERE o.suite_id = t.suite_id AND o.id <> t.id"
    " AND o.name = t.name AND o.configuration::jsonb = t.configuration::jsonb"
)
_CHECKS = (
    Check("wrong_value", "projects", "is_template", "e.is_template IS NULL", "'not null'"),
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
        "CASE WHEN e.had_gpt THEN e.tool_id::text ELSE 'a tool of the owner, or nothing' END",
        "e.active_gpt_id",
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
            "name": ("t.name", "coalesce({wanted}, t.name)"),
            "version": ("t.version", "NULL"),
            "is_active": ("t.is_active", "true"),
            "configuration": (
                "t.configuration::jsonb",
                # Of name and configuration, only the one that is wrong.
                "jsonb_build_object('project_id', e.legacy_key, 'gpt_id',"
                " CASE WHEN t.configuration::jsonb ->> 'gpt_id' = t.name THEN t.name"
                " ELSE coalesce({wanted}, t.name) END)",
            ),
        },
    ),
    Check(
        "extra",
        "tool_usage_logs",
        "duplicate",
        f"EXISTS (SELECT{_OTHER_LOG})",
        key=f"SELECT min(o.id::text){_OTHER_LOG}",
    ),
    Check(
        "extra",
        "tool_assignments",
        "",
        f"EXISTS (SELECT{_OTHER_ASSIGNMENT})",
        key=f"SELECT concat('tool ', t.id, ', user ', min(o.user_id::text)){_OTHER_ASSIGNMENT}",
    ),
    Check(
        "extra",
        "ai_tools",
        "duplicate",
        f"EXISTS (SELECT{_OTHER_TOOL})",
        key=f"SELECT min(o.id::text){_OTHER_TOOL}",
    ),
)

_KEYS = {"projects": "e.legacy_key", "quarantine": "e.legacy_key", **expected.TOOL_KEYS}

# The GPT that a project had is in the before-image of the run that switched it. A project without
# one must point at a tool of its owner, if at anything: the new application made it, or its images
# are gone. So must one that an earlier run switched: the new application may have chosen another.
_PROJECTS = """
SELECT found.kind, 'project', e.legacy_key, found.target_table, found.detail, {values}
FROM (
  SELECT p.id::text AS legacy_key, p.user_id, {held} AS active_gpt_id,
    {is_template} AS is_template,
    {tool_id} AS tool_id, {usage_id} AS usage_id, b.was,
    btrim(coalesce(b.was ->> 'active_gpt_id', ''), :blanks) <> ''
      AND (b.run_id = :own_run OR {held} = ({tool_id})::text) AS had_gpt,
    btrim(coalesce({active_gpt}, ''), :blanks) <> '' AS has_gpt
  FROM {projects} p LEFT JOIN LATERAL ({image}) AS b ON true
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
) AS {fault}
WHERE ({differs}) AND found.differs
"""

_IMAGE = """
    SELECT i.was, i.run_id FROM migration.before_images i
    WHERE i.entity = 'project' AND i.legacy_key = p.id::text
      AND i.was ? 'active_gpt_id' ORDER BY i.run_id DESC LIMIT 1
"""
# A canary switches nothing. The project is judged as if it pointed at its tool, and the image held
# the GPT that it has: unless that is a tool which its owner has already.
_IMAGE_TO_BE = """
    SELECT jsonb_build_object('active_gpt_id', {active_gpt}) AS was, :own_run AS run_id
    WHERE btrim(coalesce({active_gpt}, ''), :blanks) <> '' AND (
      {is_held_key} OR NOT EXISTS (
        SELECT FROM {ai_tools} c LEFT JOIN {ai_suites} o ON o.id = c.suite_id
        WHERE c.id = {pointed} AND (o.user_id = p.user_id OR EXISTS (
          SELECT FROM {tool_assignments} x WHERE x.tool_id = c.id AND x.user_id = p.user_id))))
"""

# A project that the database refuses in the switch keeps the tool that was made for it before.
_SET_ASIDE = """
SELECT 'extra', 'project', p.id::text, 'tool_usage_logs', 'quarantined', l.id::text, NULL, NULL
FROM migration.quarantine q
JOIN {projects} p ON p.id::text = q.legacy_key
JOIN {tool_usage_logs} l ON l.id = {usage_id} AND l.session_id = :own_run
WHERE q.entity = 'project' AND q.state IN ('open', 'accepted') AND q.reason <> 'rejected'
  AND {scope}
UNION ALL SELECT 'extra', 'project', p.id::text, 'ai_tools', 'quarantined', t.id::text, NULL, NULL
FROM migration.quarantine q
JOIN {projects} p ON p.id::text = q.legacy_key
JOIN {ai_tools} t ON t.id = {tool_id}
WHERE q.entity = 'project' AND q.state IN ('open', 'accepted') AND q.reason <> 'rejected'
  AND {scope}
  AND t.created_at >= (SELECT r.started_at AT TIME ZONE 'UTC' FROM migration.runs r
                       WHERE r.id = :own_run)
"""


# The second opinion on the GPT that a key of a subscription stands for: of all that the owner has.
# What can be a key, and names none of them, may be that of one that is gone or another user's: then
# any name is right.
_WANTED = """(SELECT coalesce(min(x.gpt) FILTER (WHERE btrim(x.gpt, :blanks) <> ''),
      CASE WHEN {key} IS NULL THEN {held} END)
    FROM (SELECT {gpt_id} AS gpt FROM {subscriptions} s
      WHERE s.user_id = {owner} AND concat(s.id) = {held}) AS x)"""


def wanted(context: Context, held: str, owner: str) -> str:
    """SQL for the name of the tool of a project of this owner that held this text.

    Null where any name is right.
    """
    if context.sources.shape.options.get("active_gpt") != "subscription":
        return held
    key = context.sources.key_named("subscription", held)
    return context.render(_WANTED, key=key, held=held, owner=owner)


_IS_KEY = """({held} IN (
    SELECT concat(s.id) FROM {subscriptions} s WHERE s.user_id = {owner}))"""


def is_key(context: Context, held: str, owner: str) -> str:
    """SQL: the text is the key of one of this owner's subscriptions, where projects hold those."""
    is_mapped = context.sources.shape.options.get("active_gpt") == "subscription"
    return context.render(_IS_KEY, held=held, owner=owner) if is_mapped else "false"


def _as_switched(context: Context, tool_id: str) -> dict[str, str]:
    """The project's columns and its image; in a canary as the switch would leave them."""
    held = context.render("{active_gpt}")
    if not context.is_canary:
        image = context.render(_IMAGE)
        return {"held": held, "is_template": "p.is_template", "image": image}
    is_held_key = is_key(context, held, "p.user_id")
    return {
        "held": f"(CASE WHEN b.was IS NULL THEN {held} ELSE ({tool_id})::text END)",
        "is_template": "coalesce(p.is_template, false)",
        "image": context.render(_IMAGE_TO_BE, is_held_key=is_held_key),
    }


def details(context: Context, condition: str) -> list[str]:
    """The statements over the projects `p` that the condition picks."""
    key = context.sources.projects.columns["id"].base
    tool_id = ids.id_of(context.sources, ids.PROJECT_TOOL, "p.id", key)
    return [
        context.render(
            sql,
            scope=condition,
            tool_id=tool_id,
            **_as_switched(context, tool_id),
            usage_id=ids.id_of(context.sources, ids.PROJECT_USAGE, "p.id", key),
            wanted=wanted(context, "(e.was ->> 'active_gpt_id')", "e.user_id"),
            named=ids.named(context.sources, "ai_tools", "e.active_gpt_id"),
            is_key=f"(e.was IS NULL AND {is_key(context, 'e.active_gpt_id', 'e.user_id')})",
            **expected.expressions(context),
        )
        for sql in (with_checks(_PROJECTS, _CHECKS, _KEYS), _SET_ASIDE)
    ]
