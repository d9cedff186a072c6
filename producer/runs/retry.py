"""Which rows a retry tries: those set aside, those that differ or are lost, and their owners."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text

from models.engine.accounting import account
from models.engine.capture import Capture
from models.engine.migration import RECONCILIATION, STEPS, VERIFICATION
from models.engine.step import Context, Scope, Step
from models.ledger.quarantine import WORKER_DIED
from models.postgres.keys import key_cast

# Differences may name a tool instead of a row: the legacy row behind it may be gone.
_TOOL_OWNERS = (
    "SELECT s.user_id FROM {ai_suites} s JOIN {ai_tools} t ON t.suite_id = s.id"
    " JOIN migration.differences d ON d.legacy_key = t.id WHERE d.run_id = :run_id"
    " UNION SELECT a.user_id FROM {tool_assignments} a"
    " JOIN migration.differences d ON d.legacy_key = a.tool_id WHERE d.run_id = :run_id"
    " UNION SELECT l.user_id FROM {tool_usage_logs} l"
    " JOIN migration.differences d ON d.legacy_key = l.id WHERE d.run_id = :run_id"
)


_ANY_LOST = text(
    "SELECT EXISTS (SELECT FROM migration.differences d"
    " WHERE d.run_id = :run_id AND d.kind = 'unaccounted')"
)

_OF_STEP = f"""
SELECT t.id::text AS key, coalesce(q.reason = '{WORKER_DIED}', false) AS died
FROM {{table}} t LEFT JOIN migration.quarantine q ON q.entity = :entity
  AND q.legacy_key = t.id::text AND q.state = 'open'
WHERE t.id::text IN (
  SELECT o.legacy_key FROM migration.quarantine o
  WHERE :quarantined AND o.entity = :entity AND o.state = 'open'
  UNION SELECT d.legacy_key FROM migration.differences d
  WHERE d.run_id = :run_id AND d.entity = :entity)
ORDER BY t.id
"""

# As if the application had changed them just now.
_NOTE = """
INSERT INTO migration.changes (entity, legacy_key, owner_key, operation)
SELECT '{entity}', t.id::text, t.{owner}::text, 'UPDATE' FROM {table} t
WHERE {scope}
"""

_FORGET = """
UPDATE migration.batches b SET counts = b.counts
  || '{"differences": 0, "discrepancies": 0, "unaccounted": 0}'
WHERE b.run_id = :run_id AND b.stage IN ('verification', 'reconciliation');
DELETE FROM migration.differences d
WHERE d.run_id = :run_id AND d.entity IN ('user', 'subscription', 'project') AND d.legacy_key <> '*'
"""


@dataclass(frozen=True)
class Keys:
    """Keys for one step; the suspects among them killed their workers, and go alone."""

    step: str
    stage: str
    keys: list[str]
    suspects: frozenset[str] = frozenset()


# The triggers once more, on each of the legacy tables.
CAPTURE = Keys(Capture.name, Capture.stage, ["user", "subscription", "project"])


def read(context: Context, *, quarantined: bool = True) -> list[Keys]:
    """Users, orphans and projects to try again, for the context's run, or those that differ only.

    An owner that exists now is migrated with all that hangs on it, new or mended. The rows of
    other steps come last, each step's by their own keys.
    """
    if context.connection.scalar(_ANY_LOST, {"run_id": context.run_id}):
        # Only the first of the lost rows are stored so far.
        account(context, stores_all=True)
    legacy, target = context.legacy, context.target
    kinds = {
        entity: key_cast(table.columns["id"].base)
        for entity, table in (
            ("user", legacy.users),
            ("subscription", legacy.subscriptions),
            ("project", legacy.projects),
        )
    }

    def read_keys(sql: str) -> list[str]:
        return list(context.connection.scalars(text(sql), {"run_id": context.run_id}))

    def set_aside(entity: str, condition: str = "true") -> str:
        # The plan may cast before it filters, so the entity guards the cast.
        key = f"CASE WHEN q.entity = '{entity}' THEN CAST(q.legacy_key AS {kinds[entity]}) END"
        return (
            f"SELECT {key} AS key FROM migration.quarantine q"
            f" WHERE {str(quarantined).lower()} AND q.entity = '{entity}' AND q.state = 'open'"
            f" AND {condition}"
        )

    def standing(entity: str, table: str) -> str:
        return (
            f"({set_aside(entity)} UNION SELECT t.id FROM {table} t"
            " JOIN migration.differences d ON d.legacy_key = t.id::text"
            f" WHERE d.entity = '{entity}' AND d.run_id = :run_id)"
        )

    def owners(of: dict[str, str]) -> str:
        return (
            f"SELECT u.id::text FROM {users} u WHERE u.id IN ({of['user']})"
            f" OR u.id IN (SELECT s.user_id FROM {subscriptions} s"
            f"   WHERE s.id IN ({of['subscription']}))"
        )

    users, subscriptions, projects = (
        table.sql for table in (legacy.users, legacy.subscriptions, legacy.projects)
    )
    tables = {"user": users, "subscription": subscriptions, "project": projects}
    tried = {entity: standing(entity, table) for entity, table in tables.items()}
    died = {entity: set_aside(entity, f"q.reason = '{WORKER_DIED}'") for entity in tables}
    named = _TOOL_OWNERS.format(**{name: table.sql for name, table in target.tables.items()})
    return [
        Keys(
            "users",
            "users",
            read_keys(
                f"{owners(tried)} OR u.id IN (SELECT p.user_id FROM {projects} p"
                f" WHERE p.id IN ({tried['project']})) OR u.id IN ({named}) ORDER BY u.id"
            ),
            frozenset(read_keys(owners(died))),
        ),
        Keys(
            "orphans",
            "users",
            read_keys(f"SELECT key::text FROM ({tried['subscription']}) AS tried(key)"),
        ),
        Keys(
            "projects",
            "projects",
            read_keys(f"SELECT key::text FROM ({tried['project']}) AS tried(key)"),
            frozenset(read_keys(f"SELECT key::text FROM ({died['project']}) AS died(key)")),
        ),
        *(_of_step(context, step, quarantined=quarantined) for step in _other_steps()),
    ]


def _other_steps() -> list[Step]:
    """The steps that page through a table to write rows, beyond those that `read` knows."""
    return [
        step
        for step in STEPS
        if step.entity
        and step.stage not in (VERIFICATION, RECONCILIATION)
        and not step.takes_lists
        and step.name not in ("users", "orphans", "projects", "switch")
    ]


def _of_step(context: Context, step: Step, *, quarantined: bool) -> Keys:
    """What is there still of the step's rows that are set aside, or differ."""
    table = step.source(context)
    if table is None:
        return Keys(step.name, step.stage, [])
    found = context.connection.execute(
        text(_OF_STEP.format(table=table.sql)),
        {"run_id": context.run_id, "entity": step.entity, "quarantined": quarantined},
    ).all()
    suspects = frozenset(row.key for row in found if row.died)
    return Keys(step.name, step.stage, [row.key for row in found], suspects)


def take_up_differences(context: Context) -> None:
    """Let the finish take up what differs, and verify it again, instead of failing the run.

    For a run that was complete: what the application changed while nobody watched differs rightly.
    """
    legacy = context.legacy
    for found, entity, table in zip(
        read(context, quarantined=False)[:3],
        ("user", "subscription", "project"),
        (legacy.users, legacy.subscriptions, legacy.projects),
        strict=True,
    ):
        owner = "id" if entity == "user" else "user_id"
        scope = Scope(keys=tuple(found.keys))
        condition = scope.condition("t.id", table.columns["id"].base)
        note = _NOTE.format(entity=entity, owner=owner, table=table.sql, scope=condition)
        context.connection.execute(text(note), scope.parameters)
    context.connection.execute(text(_FORGET), {"run_id": context.run_id})
