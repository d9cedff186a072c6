"""A page of users in sums: what must hang on them against what does, in one statement.

Every row that a user, a subscription or a project stands for goes into a sum of hashes, every row
that is there into another. Where they are equal, nothing is missing, extra, changed or somebody
else's, and no row needs to be looked at for itself; where they differ, or where a user had values
of their own before, `users_verification.py` says what is wrong, if anything is.
"""

from __future__ import annotations

from models.dashboard import ids
from models.dashboard.checks import expected
from models.dashboard.scopes import near, owned
from models.engine.checks.verification import newest_images
from models.engine.step import Context, Scope

# Ranges are joined, single rows are looked up: OFFSET 0 keeps them apart from plans that read a
# whole table for a large page. A sum is over the rows whose constant columns are right, a count
# over all of them. A project's tool is held against its project in `projects/checksum.py`; here it
# only has to be there. `pair` is the hash of a tool's owner and id. The hashes of all that hangs on
# the tool begin with it, so that these texts are hashed once.
_OWNERS = """
WITH page AS MATERIALIZED (
  SELECT u.id, {user_seed} AS seed, {suite_id} AS suite_id,
    concat({email}, {suite_suffix}) AS suite_name, q.legacy_key,
    coalesce(NOT b.was ?| ARRAY['kept', 'suite'] AND u.user_type::text = {user_type}
      AND u.billing_tier::text = 'free' AND u.is_active AND u.credits_balance IS NOT NULL
      AND u.organization_id::text = home.organization_id
      AND u.department_id::text = coalesce(b.was ->> 'department_id', home.department_id), false)
      AS is_plain
  FROM {users} u
  CROSS JOIN LATERAL (SELECT {role} AS name) AS role
  LEFT JOIN migration.quarantine q ON q.entity = 'user' AND q.legacy_key = u.id::text
    AND q.state IN ('open', 'accepted')
  LEFT JOIN {images} AS b ON b.legacy_key = u.id::text
  CROSS JOIN ({home}) AS home
  WHERE {scope}
),
owner AS (
  SELECT count(*) AS users, count(e.legacy_key) AS users_quarantined,
    coalesce(bool_and(e.is_plain OR e.legacy_key IS NOT NULL), true) AS are_plain,
    sum({suite_asked}) FILTER (WHERE e.legacy_key IS NULL) AS suites
  FROM page e
),
suite AS MATERIALIZED (
  SELECT h.id, h.name, {suite_seed} AS seed,
    h.is_active AND h.configuration::jsonb = {suite_configuration} AS is_plain
  FROM {ai_suites} h WHERE {suites_scope}
),
suites AS (
  SELECT count(*) AS rows, sum({suite_found}) FILTER (WHERE h.is_plain) AS total FROM suite h
),
"""
_ASKED = """
subscription AS (
  SELECT {pair_asked} AS pair, {usage_id} AS usage_id, {gpt_id} AS name, {version} AS version,
    {is_active} AS is_active, CASE WHEN q.legacy_key IS NULL THEN {configuration} END
      AS configuration, q.legacy_key IS NULL AS stands
  FROM page JOIN {subscriptions} s ON s.user_id = page.id AND {subscriptions_scope}
  LEFT JOIN migration.quarantine q ON q.entity = 'subscription' AND q.legacy_key = s.id::text
    AND q.state IN ('open', 'accepted')
  OFFSET 0
),
asked AS (
  SELECT count(*) AS subscriptions, count(*) FILTER (WHERE e.stands) AS rows,
    sum({tool_asked}) FILTER (WHERE e.stands) AS tools,
    sum(e.pair) FILTER (WHERE e.stands) AS assignments,
    sum({log_asked}) FILTER (WHERE e.stands) AS logs
  FROM subscription e
),
asked_by_projects AS (
  SELECT count(*) AS rows, sum(e.pair) AS pairs, sum({log_asked}) AS logs
  FROM (
    SELECT {project_pair} AS pair, {project_usage} AS usage_id
    FROM page JOIN {projects} p ON p.user_id = page.id AND {projects_scope}
    WHERE {active_gpt} = ({project_tool})::text
    OFFSET 0
  ) AS e
),
"""
_FOUND = """
tools AS (
  SELECT count(*) AS rows, sum(
    CASE WHEN {is_project_tool} THEN {pair_found} ELSE {tool_found} END
  ) FILTER (WHERE t.tool_type = 'gpt' AND t.pricing_tier::text = 'free' AND t.credits_cost = 0
    AND t.requires_approval = false) AS total
  FROM suite h CROSS JOIN LATERAL (
    SELECT o.* FROM {ai_tools} o WHERE o.suite_id = h.id OFFSET 0) AS t
),
assignments AS (
  SELECT count(*) AS rows, sum({assignment_found}) FILTER (WHERE a.expires_at IS NULL
    AND a.assigned_by::text IS NOT DISTINCT FROM {assigned_by}
    AND a.permissions::jsonb = {full_access}) AS total
  FROM {tool_assignments} a WHERE {assignments_scope}
),
logs AS (
  SELECT count(*) AS rows, sum({log_found}) FILTER (WHERE l.action = 'migration'
    AND l.credits_used = 0 AND l.status = 'completed') AS total
  FROM {tool_usage_logs} l WHERE {logs_scope}
)
"""
_COMPARED = """
SELECT o.users, o.users_quarantined, s.subscriptions,
  s.subscriptions - s.rows AS subscriptions_quarantined,
  o.are_plain AND o.users - o.users_quarantined = h.rows
    AND coalesce(o.suites, 0) = coalesce(h.total, 0)
    AND s.rows + p.rows = ALL(ARRAY[t.rows, a.rows, l.rows])
    AND coalesce(s.tools, 0) + coalesce(p.pairs, 0) = coalesce(t.total, 0)
    AND coalesce(s.assignments, 0) + coalesce(p.pairs, 0) = coalesce(a.total, 0)
    AND coalesce(s.logs, 0) + coalesce(p.logs, 0) = coalesce(l.total, 0) AS matches
FROM owner o, suites h, asked s, asked_by_projects p, tools t, assignments a, logs l
"""


def statement(context: Context, scope: Scope) -> str:
    """The statement that counts one page of users and their subscriptions, and holds the sums."""
    users, subscriptions = context.sources.users, context.sources.subscriptions
    user_key, project_key = users.columns["id"].base, context.sources.projects.columns["id"].base
    key = subscriptions.columns["id"].base
    tool_id = f"({ids.id_of(context.sources, ids.SUBSCRIPTION_TOOL, 's.id', key)})"
    project_tool = ids.id_of(context.sources, ids.PROJECT_TOOL, "p.id", project_key)
    pair_found = _hash("t.id", seed="h.seed")
    return context.render(
        _OWNERS + _ASKED + _FOUND + _COMPARED,
        **expected.expressions(context, is_optimistic=scope.is_optimistic),
        scope=scope.condition("u.id", user_key),
        suites_scope=owned(context, context.target.table("ai_suites"), "h", scope),
        assignments_scope=owned(context, context.target.table("tool_assignments"), "a", scope),
        logs_scope=owned(context, context.target.table("tool_usage_logs"), "l", scope),
        images=newest_images(context, "user", users, scope),
        subscriptions_scope=near(context, subscriptions, "s", scope),
        projects_scope=near(context, context.sources.projects, "p", scope),
        pair_asked=_hash(tool_id, seed="page.seed"),
        usage_id=ids.id_of(context.sources, ids.SUBSCRIPTION_USAGE, "s.id", key),
        project_tool=project_tool,
        project_pair=_hash(f"({project_tool})", seed="page.seed"),
        project_usage=ids.id_of(context.sources, ids.PROJECT_USAGE, "p.id", project_key),
        is_project_tool=ids.has_kind(context.sources, ids.PROJECT_TOOL, "t.id"),
        suite_id=ids.id_of(context.sources, ids.SUITE, "u.id", user_key),
        user_seed=_hash("u.id"),
        suite_seed=_hash("h.user_id"),
        suite_asked=_hash("e.suite_id", "e.suite_name", seed="e.seed"),
        suite_found=_hash("h.id", "h.name", seed="h.seed"),
        tool_asked=_tool("e.pair", "e.name", "e.version", "e.is_active", "e.configuration"),
        tool_found=_tool(pair_found, "t.name", "t.version", "t.is_active",
                         "t.configuration::jsonb"),
        pair_found=pair_found,
        assignment_found=_hash("a.user_id", "a.tool_id"),
        log_asked=_hash("e.usage_id", seed="e.pair"),
        log_found=_hash("l.user_id", "l.tool_id", "l.id"),
    )  # fmt: skip


def _tool(pair: str, name: str, version: str, is_active: str, document: str) -> str:
    flag = f"CASE {is_active} WHEN true THEN 1 WHEN false THEN 2 ELSE 3 END"
    values = _hash(f"coalesce({version}, chr(1))", name, seed=f"({pair} # ({flag})::bigint)")
    return f"jsonb_hash_extended({document}, {values})"


def _hash(*texts: str, seed: str = "0") -> str:
    """SQL for 64 bits of all the texts; each is the seed of the next, so none runs into another."""
    for text in texts:
        seed = f"hashtextextended({text}::text, {seed})"
    return seed
