"""Which rows a run would set aside, by reason (rule 9), counted without writing anything."""

from __future__ import annotations

from sqlalchemy import Connection, text

from models import sessions
from models.catalog import quote
from models.legacy import EXACT, Legacy, exact, word

_USERS = """
SELECT 'email_blank', count(*) FROM {users} u
WHERE btrim(coalesce({email}, ''), :blanks) = ''
"""

# Each row has one reason, in the order in which the run looks for them.
_SUBSCRIPTIONS = """
SELECT reason, count(*) FROM (
  SELECT CASE WHEN u.id IS NULL THEN 'owner_missing'
    WHEN btrim(coalesce({email}, ''), :blanks) = '' THEN 'owner_quarantined'
    WHEN btrim(coalesce({gpt_id}, ''), :blanks) = '' THEN 'gpt_id_blank'
    WHEN {is_malformed} THEN 'preferences_malformed'
    WHEN {type} NOT IN ('object', 'null') THEN 'preferences_not_object' END AS reason
  FROM {subscriptions} s LEFT JOIN {users} u ON u.id = s.user_id
) AS subscription
WHERE reason IS NOT NULL GROUP BY reason
"""

_PROJECTS = """
SELECT reason, count(*) FROM (
  SELECT CASE WHEN u.id IS NULL THEN 'owner_missing'
    WHEN btrim(coalesce({email}, ''), :blanks) = '' THEN 'owner_quarantined' END AS reason
  FROM {projects} p LEFT JOIN {users} u ON u.id = p.user_id
) AS project
WHERE reason IS NOT NULL GROUP BY reason
"""

# Rule 5 knows these; a tool is active for the first of them only.
STATUSES = ("active", "inactive", "paused")
_STATUSES = """
SELECT count(*) FROM {subscriptions} s
WHERE {status} <> ALL(:known)
"""


def unknown_statuses(connection: Connection, legacy: Legacy) -> int:
    """How many subscriptions have a status that the rules do not know; a null is none."""
    status = word(exact(legacy.subscriptions, "status", "NULL"))
    statement = _STATUSES.format(subscriptions=legacy.subscriptions.sql, status=status)
    values = {"blanks": sessions.blanks(connection), "known": list(STATUSES)}
    return int(connection.scalar(text(statement), values) or 0)


def quarantine_by_reason(connection: Connection, legacy: Legacy) -> tuple[dict[str, int], bool]:
    """Rows by reason, and whether malformed JSON is among them: PostgreSQL before 16 cannot tell.

    Reads the three tables from end to end.
    """
    version = int(connection.scalar(text("SHOW server_version_num")) or 0)
    is_malformed, kind, is_exact = _preferences(legacy, version)
    names = {
        **EXACT,
        "users": legacy.users.sql,
        "subscriptions": legacy.subscriptions.sql,
        "projects": legacy.projects.sql,
        "is_malformed": is_malformed,
        "type": kind,
    }
    found: dict[str, int] = {}
    for statement in (_USERS, _SUBSCRIPTIONS, _PROJECTS):
        blanks = {"blanks": sessions.blanks(connection)}
        rows = connection.execute(text(statement.format(**names)), blanks)
        for reason, count in rows:
            found[reason] = found.get(reason, 0) + count
    return {reason: count for reason, count in sorted(found.items()) if count}, is_exact


def _preferences(legacy: Legacy, version: int) -> tuple[str, str, bool]:
    """SQL: that the preferences are malformed, and their JSON type where they are not."""
    column = legacy.subscriptions.columns.get("preferences")
    if column is None:
        return "false", "'null'", True
    name = f"s.{quote('preferences')}"
    if column.base == "jsonb":
        return "false", f"coalesce(jsonb_typeof({name}), 'null')", True
    if version >= 160000:
        valid = f"pg_input_is_valid({name}::text, 'jsonb')"
        # The cast is reached by what is valid only.
        kind = f"CASE WHEN {valid} THEN coalesce(jsonb_typeof({name}::text::jsonb), 'null') END"
        return f"{name} IS NOT NULL AND NOT {valid}", kind, True
    if column.base == "json":
        return "false", f"coalesce(json_typeof({name}), 'null')", False
    first = f'left(btrim({name}::text COLLATE "C", :blanks), 1)'
    is_plausible = f"{name} IS NULL OR {first} IN ('{{', 'n')"
    return "false", f"CASE WHEN {is_plausible} THEN 'null' ELSE '' END", False
