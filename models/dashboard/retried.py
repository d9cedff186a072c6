"""Which users, orphans and projects a retry tries: those quarantined, those that differ, owners."""

from __future__ import annotations

from sqlalchemy import text

from models.dashboard import ids
from models.engine.retry import Keys
from models.engine.step import Context
from models.ledger.quarantine import WORKER_DIED
from models.postgres.keys import key_cast

# Differences may name a tool instead of a row: the legacy row behind it may be gone.
_TOOL_OWNERS = (
    "SELECT s.user_id FROM {ai_suites} s JOIN {ai_tools} t ON t.suite_id = s.id"
    " JOIN migration.differences d ON {tool} = t.id WHERE d.run_id = :run_id"
    " UNION SELECT a.user_id FROM {tool_assignments} a"
    " JOIN migration.differences d ON {tool} = a.tool_id WHERE d.run_id = :run_id"
    " UNION SELECT l.user_id FROM {tool_usage_logs} l"
    " JOIN migration.differences d ON {usage_log} = l.id WHERE d.run_id = :run_id"
)


def retried(context: Context, *, quarantined: bool) -> list[Keys]:
    """Users, orphans and projects to try again, or those that differ only.

    An owner that exists now is migrated with all that hangs on it, new or fixed.
    """
    sources, target = context.sources, context.target
    kinds = {entity: key_cast(table.key.base) for entity, table in sources.declared.items()}

    def read_keys(sql: str) -> list[str]:
        return list(context.connection.scalars(text(sql), {"run_id": context.run_id}))

    def in_quarantine(entity: str, condition: str = "true") -> str:
        # The plan may cast before it filters, so the entity guards the cast.
        key = f"CASE WHEN q.entity = '{entity}' THEN CAST(q.legacy_key AS {kinds[entity]}) END"
        return (
            f"SELECT {key} AS key FROM migration.quarantine q"
            f" WHERE {str(quarantined).lower()} AND q.entity = '{entity}' AND q.state = 'open'"
            f" AND {condition}"
        )

    def standing(entity: str, table: str) -> str:
        return (
            f"({in_quarantine(entity)} UNION SELECT t.id FROM {table} t"
            " JOIN migration.differences d ON d.legacy_key = t.id::text"
            f" WHERE d.entity = '{entity}' AND d.run_id = :run_id)"
        )

    def owners(of: dict[str, str]) -> str:
        return (
            f"SELECT u.id::text FROM {users} u WHERE u.id IN ({of['user']})"
            f" OR u.id IN (SELECT s.user_id FROM {subscriptions} s"
            f"   WHERE s.id IN ({of['subscription']}))"
        )

    tables = {entity: table.sql for entity, table in sources.declared.items()}
    users, subscriptions, projects = tables.values()
    tried = {entity: standing(entity, table) for entity, table in tables.items()}
    died = {entity: in_quarantine(entity, f"q.reason = '{WORKER_DIED}'") for entity in tables}
    named = _TOOL_OWNERS.format(
        **{name: table.sql for name, table in target.tables.items()},
        tool=ids.ours(sources, "ai_tools", "d.legacy_key"),
        usage_log=ids.ours(sources, "tool_usage_logs", "d.legacy_key"),
    )
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
    ]
