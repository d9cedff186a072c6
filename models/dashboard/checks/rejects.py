"""Rule 9 in words of its own: which rows are bad, and for which reason. Shared by no worker.

`check` counts them before a run; the verification judges with them what the run quarantined.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

from models.dashboard.legacy import exact, texts, word
from models.engine.checks.answers import Rule
from models.engine.source import Sources
from models.engine.step import Context
from models.postgres import sessions
from models.reports.checks import Check

# Each row has one reason, in the order in which the run looks for them; null: it is good.
_OWNER = """CASE WHEN u.id IS NULL THEN 'owner_missing'
    WHEN btrim(coalesce({email}, ''), :blanks) = '' THEN 'owner_quarantined'"""
_REASONS = {
    "user": "CASE WHEN btrim(coalesce({email}, ''), :blanks) = '' THEN 'email_blank' END",
    "subscription": f"""{_OWNER}
    WHEN btrim(coalesce({{gpt_id}}, ''), :blanks) = '' THEN 'gpt_id_blank'
    WHEN {{is_malformed}} THEN 'preferences_malformed'
    WHEN {{type}} NOT IN ('object', 'null') THEN 'preferences_not_object' END""",
    "project": f"{_OWNER} END",
}
_ROWS = {
    "user": ("{users} u", "u"),
    "subscription": ("({subscriptions} s LEFT JOIN {users} u ON u.id = s.user_id)", "s"),
    "project": ("({projects} p LEFT JOIN {users} u ON u.id = p.user_id)", "p"),
}
# Rule 5 knows these; a tool is active for the first of them only.
STATUSES = ("active", "inactive", "paused")
_STATUSES = """
SELECT count(*) FROM {subscriptions} s
WHERE {status} <> ALL(:known)
"""


def statuses(connection: Connection, sources: Sources) -> Check:
    """The row of `check` for subscriptions whose status the rules do not know; null is known."""
    table, known = sources.subscriptions, ", ".join(STATUSES)
    status = word(exact(table, "status", "NULL"))
    statement = _STATUSES.format(subscriptions=table.sql, status=status)
    values = {"blanks": sessions.blanks(connection), "known": list(STATUSES)}
    found = int(connection.scalar(text(statement), values) or 0)
    if not found:
        return Check(verdict="ok", found=f"none but {known}")
    labels = table.columns["status"].enum or ()
    others = ", ".join(each for each in labels if each.strip().lower() not in STATUSES)
    return Check(
        verdict="warning",
        found=f"{found:,} rows of {table.label} have a status that is none of {known}"
        + (f": {others}" if others else ""),
        hint="Their tools are not active. Change the rows before the run where they are to be.",
    )


def rules(connection: Connection, sources: Sources) -> tuple[dict[str, Rule], bool]:
    """The rules by entity, without the ledger, and whether malformed JSON is among the reasons.

    PostgreSQL before 16 cannot tell malformed JSON.
    """
    found, is_exact = {}, True
    for entity, (_, alias) in _ROWS.items():
        reason, is_exact_here = reason_of(connection, sources, entity)
        is_exact = is_exact and is_exact_here
        found[entity] = Rule(rows_of(sources, entity), alias, reason)
    return found, is_exact


def rule(context: Context, entity: str) -> Rule:
    """The rule's second words for one source, for the verification."""
    _, alias = _ROWS[entity]
    reason, _ = reason_of(context.connection, context.sources, entity, has_ledger=True)
    return Rule(rows_of(context.sources, entity), alias, reason)


def rows_of(sources: Sources, entity: str) -> str:
    """SQL: the rows of an entity as `u`, `s` or `p`, with the owner as `u` where they have one."""
    rows, _ = _ROWS[entity]
    return rows.format(**sources.names)


def reason_of(
    connection: Connection, sources: Sources, entity: str, *, has_ledger: bool = False
) -> tuple[str, bool]:
    """SQL: why a row of `rows_of` is bad, null where it is good; and whether that is exact.

    Binds :blanks. Without the ledger's function, PostgreSQL before 16 cannot tell malformed JSON.
    """
    version = sessions.server_version(connection)
    is_malformed, kind, is_exact = _preferences(sources, version, has_ledger=has_ledger)
    reason = _REASONS[entity].format(is_malformed=is_malformed, type=kind, **texts(sources))
    return reason, is_exact or entity != "subscription"


def _preferences(sources: Sources, version: int, *, has_ledger: bool) -> tuple[str, str, bool]:
    """SQL: that the preferences are malformed, and their JSON type where they are not."""
    column = sources.subscriptions.columns.get("preferences")
    if column is None:
        return "false", "'null'", True
    name = sources.subscriptions.value("preferences", "s")
    if column.base == "jsonb":
        return "false", f"coalesce(jsonb_typeof({name}), 'null')", True
    if has_ledger:
        # Also for what is nested too deep, where pg_input_is_valid() fails.
        tried = f"migration.try_jsonb({name}::text)"
        kind = f"coalesce(jsonb_typeof({tried}), 'null')"
        return f"{name} IS NOT NULL AND {tried} IS NULL", kind, True
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
