"""Whether the values that are there fit the columns that they are written to: one scan a column.

Asked only where a column is narrower than what could come, so that on ordinary tables nothing is
read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from models.dashboard.made import SUITE_SUFFIX
from models.engine.schema.target import Target
from models.engine.source import Sources
from models.postgres.catalog import INTEGER_TYPES, TEXT_TYPES, Column, Table
from models.postgres.database import sqlstate
from models.preflight.obstacles import LEGACY, TARGET, Obstacle

# More than this share of a table's rows refused for one column is no matter of rows.
SHARE = 0.01
_BYTES = {"smallint": 2, "integer": 4, "bigint": 8}


def find(
    connection: Connection, sources: Sources, target: Target, grants: Mapping[str, Decimal]
) -> list[Obstacle]:
    """Columns that some value does not fit: fatal where that is more than SHARE of the rows."""
    return [
        *_casts(connection, sources),
        *_widths(connection, sources, target),
        *_money(connection, sources, target, grants),
    ]


def _casts(connection: Connection, sources: Sources) -> Iterator[Obstacle]:
    column = sources.subscriptions.columns.get("is_active")
    if column is None or column.base in ("boolean", "integer"):
        return
    try:
        with connection.begin_nested():
            connection.exec_driver_sql(
                f"SELECT count({sources.subscriptions.value('is_active', 's')}::boolean)"
                f" FROM {sources.subscriptions.sql} s"
            )
    except DBAPIError as failure:
        # 42: there is no such cast; 22: some value has none.
        if sqlstate(failure)[:2] not in ("42", "22"):
            raise
        values = "" if sqlstate(failure)[:2] == "42" else " with values that are no boolean"
        yield Obstacle(
            LEGACY,
            f"{sources.subscriptions.label}.is_active: expected boolean, found {column.type}"
            f"{values}",
            f"ALTER TABLE {sources.subscriptions.label} ALTER is_active TYPE boolean USING …",
        )


def _widths(connection: Connection, sources: Sources, target: Target) -> Iterator[Obstacle]:
    users, subscriptions, projects = sources.users, sources.subscriptions, sources.projects
    email, gpt_id = users.value("email", "t"), subscriptions.value("gpt_id", "t")
    version = subscriptions.value("version", "t")
    origins: dict[tuple[str, str], list[tuple[Table, str, str]]] = {
        ("ai_suites", "name"): [(users, "email", f"{email}::text || {SUITE_SUFFIX}")],
        ("ai_tools", "name"): [
            (subscriptions, "gpt_id", f"{gpt_id}::text"),
            (projects, "active_gpt_id", "t.active_gpt_id::text"),
        ],
        ("ai_tools", "version"): [(subscriptions, "version", f"{version}::text")],
        **{
            (name, "user_id"): [(users, "id", "t.id::text")]
            for name in ("ai_suites", "tool_assignments", "tool_usage_logs", "credit_logs")
        },
    }
    for (name, column), wanted in origins.items():
        table = target.tables.get(name)
        found = table.columns.get(column) if table else None
        for source, source_column, expression in wanted:
            origin = source.columns.get(source_column)
            if table is None or found is None or origin is None:
                continue
            excess = _excess(found, origin, expression)
            if excess:
                yield from _refused(connection, source, excess, table, found)


def _excess(found: Column, origin: Column, expression: str) -> str | None:
    """SQL condition for a value that the column cannot hold; None where all can be held."""
    if found.base in TEXT_TYPES:
        own = 8 if SUITE_SUFFIX in expression else 0
        if found.length is None or (
            origin.length is not None and origin.length + own <= found.length
        ):
            return None
        return f"length({expression}) > {found.length}"
    if {found.base, origin.base} <= INTEGER_TYPES and _BYTES[found.base] < _BYTES[origin.base]:
        return f"t.id > {2 ** (8 * _BYTES[found.base] - 1) - 1}"
    return None


def _money(
    connection: Connection, sources: Sources, target: Target, grants: Mapping[str, Decimal]
) -> Iterator[Obstacle]:
    has_role = "role" in sources.users.columns
    role = f"lower(btrim({sources.users.value('role', 't')}::text))" if has_role else "NULL"
    if "user_type" in sources.users.columns:
        role = f"coalesce(nullif(t.user_type::text, 'student'), {role})"
    cases = " ".join(f"WHEN '{name}' THEN {value}" for name, value in grants.items() if name != "*")
    other = f"{grants['*']}::numeric"
    granted = f"CASE {role} {cases} ELSE {other} END" if cases else other
    has_balance = "credits_balance" in sources.users.columns
    after = f"coalesce(t.credits_balance, 0) + {granted}" if has_balance else granted
    columns: list[tuple[Table, str]] = [(sources.users, "credits_balance")]
    if "credit_logs" in target.tables:
        log = target.tables["credit_logs"]
        columns += [(log, "amount"), (log, "balance_after")]
    for table, column in columns:
        found = table.columns.get(column)
        sizes = re.fullmatch(r"numeric\((\d+),(-?\d+)\)", found.type) if found else None
        if found and sizes:
            limit = Decimal(10) ** (int(sizes[1]) - int(sizes[2]))
            yield from _refused(connection, sources.users, f"abs({after}) >= {limit}", table, found)


def _refused(
    connection: Connection, source: Table, condition: str, table: Table, found: Column
) -> Iterator[Obstacle]:
    row = connection.execute(
        text(f"SELECT count(*) FILTER (WHERE {condition}), count(*) FROM {source.sql} t")
    ).one()
    refused, total = int(row[0]), int(row[1])
    if refused:
        yield Obstacle(
            TARGET,
            f"{table.label}.{found.name} is {found.type}: too small for what {refused:,} of"
            f" {total:,} rows of {source.label} bring",
            f"ALTER TABLE {table.label} ALTER {found.name} TYPE a wider type; rows that do not fit"
            " are quarantined.",
            is_fatal=refused > SHARE * total,
        )
