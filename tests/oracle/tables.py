"""The legacy and the target tables as they stand at one moment, every value as text."""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy import Connection, Text, cast, column, select, table, text

Row = dict[str, str | None]
"""A row with every value as PostgreSQL writes it in text; a column that is missing has no key."""
TARGETS: dict[str, tuple[str, ...]] = {
    "organizations": ("id",),
    "departments": ("id",),
    "ai_suites": ("id",),
    "ai_tools": ("id",),
    "tool_assignments": ("tool_id", "user_id"),
    "tool_usage_logs": ("id",),
    "marketplace_listings": ("id",),
    "credit_logs": ("id",),
}
"""The target tables and their keys."""
USER_COLUMNS = {
    *("user_type", "billing_tier", "organization_id", "department_id", "credits_balance"),
    *("is_active", "last_login", "preferences"),
}
"""The users' columns that belong to the target."""


@dataclass(frozen=True)
class Names:
    """What the three legacy tables are called, optionally `schema.table`.

    `targets` has target tables of other names, `columns` by legacy table the columns of other
    names, by those that the rules have. `active_gpt` is what a project's column holds.
    """

    users: str = "users"
    subscriptions: str = "gpt_subscriptions"
    projects: str = "projects"
    targets: dict[str, str] = field(default_factory=dict, hash=False)
    columns: dict[str, dict[str, str]] = field(default_factory=dict, hash=False)
    active_gpt: str = "gpt"


@dataclass(frozen=True)
class Snapshot:
    """Every row of the legacy and the target tables at one moment.

    `tables` has the legacy tables as users, subscriptions and projects, whatever they are called.
    `defaults` are the server defaults of the users' columns.
    """

    names: Names = field(default_factory=Names)
    tables: dict[str, list[Row]] = field(default_factory=dict)
    defaults: Row = field(default_factory=dict)
    assigned_by_is_foreign_key: bool = False
    named: dict[str, str] = field(default_factory=dict)
    """What the tools of projects are named after, where it is not what the project holds."""

    def rows(self, name: str) -> list[Row]:
        return self.tables.get(name, [])

    def by_key(self, name: str) -> dict[tuple[str | None, ...], Row]:
        columns = TARGETS.get(name, ("id",))
        return {tuple(row[each] for each in columns): row for row in self.rows(name)}


def snapshot(connection: Connection, names: Names) -> Snapshot:
    """Read all the tables; those that do not exist are empty."""
    tables = {
        "users": _read(connection, names.users),
        "subscriptions": _read(connection, names.subscriptions),
        "projects": _read(connection, names.projects),
    }
    for name, columns in names.columns.items():
        for row in tables[name]:
            row.update({rule: row[here] for rule, here in columns.items()})
    tables |= {name: _read(connection, names.targets.get(name, name)) for name in TARGETS}
    is_key = connection.scalar(
        text(
            "SELECT count(*) FROM pg_constraint c JOIN pg_attribute a ON a.attrelid = c.conrelid"
            " AND a.attnum = ANY (c.conkey) WHERE c.contype = 'f'"
            " AND c.conrelid = to_regclass('tool_assignments') AND a.attname = 'assigned_by'"
        )
    )
    return Snapshot(names, tables, _defaults(connection, names.users), bool(is_key))


def quoted(name: str) -> str:
    return ".".join(f'"{part}"' for part in name.split("."))


def _read(connection: Connection, name: str) -> list[Row]:
    found = connection.scalars(
        text(
            "SELECT attname::text FROM pg_attribute WHERE attrelid = to_regclass(:name)"
            " AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
        ),
        {"name": quoted(name)},
    ).all()
    if not found:
        return []
    schema, _, bare = name.rpartition(".")
    columns = [cast(column(each), Text).label(each) for each in found]
    query = select(*columns).select_from(table(bare, schema=schema or None))
    rows = connection.execute(query.order_by(columns[0]))
    return [dict(row) for row in rows.mappings()]


def _defaults(connection: Connection, users: str) -> Row:
    expressions = connection.execute(
        text(
            "SELECT attname::text, 'CAST((' || pg_get_expr(adbin, adrelid) || ') AS '"
            "  || format_type(atttypid, atttypmod) || ')' FROM pg_attrdef JOIN pg_attribute"
            " ON attrelid = adrelid AND attnum = adnum WHERE adrelid = to_regclass(:name)"
            " AND attname = ANY(:columns)"
        ),
        {"name": quoted(users), "columns": sorted(USER_COLUMNS)},
    ).all()
    return {
        name: connection.exec_driver_sql(f"SELECT ({expression})::text").scalar()
        for name, expression in expressions
    }
