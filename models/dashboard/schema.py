"""The target schema as declared: enums, tables, foreign keys, indexes and defaults."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from models.dashboard.ids import integers
from models.engine.schema.declaration import RawType, Reference, Schema
from models.engine.source import Sources

ENUMS = {
    "user_type": ("student", "teacher", "admin", "developer"),
    "billing_tier": ("free", "basic", "premium", "enterprise"),
    "tool_status": ("active", "inactive", "pending", "deprecated"),
}
TABLES = (
    "organizations",
    "departments",
    "ai_suites",
    "ai_tools",
    "tool_assignments",
    "tool_usage_logs",
    "marketplace_listings",
    "credit_logs",
)


REFERENCES = (
    Reference("departments", "organization_id", "organizations", "CASCADE"),
    Reference("ai_suites", "user_id", "users", "CASCADE"),
    Reference("ai_tools", "suite_id", "ai_suites", "CASCADE"),
    Reference("tool_assignments", "tool_id", "ai_tools", "CASCADE"),
    Reference("tool_assignments", "user_id", "users", "CASCADE"),
    Reference("tool_usage_logs", "user_id", "users", "CASCADE"),
    Reference("tool_usage_logs", "tool_id", "ai_tools", "CASCADE"),
    Reference("marketplace_listings", "tool_id", "ai_tools", "CASCADE"),
    Reference("credit_logs", "user_id", "users", "CASCADE"),
    Reference("users", "organization_id", "organizations", "SET NULL"),
    Reference("users", "department_id", "departments", "SET NULL"),
)
# Every batch looks these up, so they are there from the start.
EARLY_INDEXES = (("ai_suites", "user_id"), ("credit_logs", "user_id"))
USER_DEFAULTS = {
    "user_type": "'student'",
    "billing_tier": "'free'",
    "credits_balance": "0",
    "is_active": "true",
}


def declare(sources: Sources) -> sa.MetaData:
    """The declared schema: the new tables, and `users`/`projects` with their added columns only."""
    schema, user_key = sources.first.schema, RawType(sources.users.key.type)
    metadata = sa.MetaData(schema=schema)
    user_type, tier, _ = (
        pg.ENUM(*labels, name=name, schema=schema, create_type=False, metadata=metadata)
        for name, labels in ENUMS.items()
    )

    def string(name: str, *, null: bool = True) -> sa.Column[Any]:
        return sa.Column(name, sa.String, nullable=null)

    def id_type(table: str) -> Any:
        found = integers(sources, table)
        return RawType(found.type) if found else sa.String()

    def key(name: str, table: str, *, null: bool = True, primary: bool = False) -> sa.Column[Any]:
        return sa.Column(name, id_type(table), nullable=null and not primary, primary_key=primary)

    def owner(*, primary_key: bool = False) -> sa.Column[Any]:
        return sa.Column("user_id", user_key, nullable=False, primary_key=primary_key)

    def document(name: str) -> sa.Column[Any]:
        return sa.Column(name, pg.JSONB, server_default=sa.text("'{}'"))

    def money(name: str, *, null: bool = True) -> sa.Column[Any]:
        default = sa.text("0") if null else None
        return sa.Column(name, sa.Numeric(10, 2), server_default=default, nullable=null)

    def flag(name: str, default: str) -> sa.Column[Any]:
        return sa.Column(name, sa.Boolean, server_default=sa.text(default))

    def moment(name: str) -> sa.Column[Any]:
        return sa.Column(name, sa.DateTime, server_default=sa.func.now())

    def table(name: str, *columns: sa.Column[Any]) -> None:
        sa.Table(name, metadata, *columns)

    table(
        "users",
        sa.Column("user_type", user_type),
        sa.Column("billing_tier", tier),
        key("organization_id", "organizations"),
        key("department_id", "departments"),
        sa.Column("credits_balance", sa.Numeric(10, 2)),
        sa.Column("is_active", sa.Boolean),
        sa.Column("last_login", sa.DateTime),
        sa.Column("preferences", pg.JSONB),
    )
    if not sources.projects.nothing:
        table("projects", sa.Column("is_template", sa.Boolean))
    table(
        "organizations",
        key("id", "organizations", primary=True),
        string("name", null=False),
        string("type"),
        sa.Column("subscription_tier", tier, nullable=False),
        money("credits_balance"),
        document("settings"),
        moment("created_at"),
        moment("updated_at"),
    )
    table(
        "departments",
        key("id", "departments", primary=True),
        key("organization_id", "organizations", null=False),
        string("name", null=False),
        string("description"),
        document("settings"),
        moment("created_at"),
        moment("updated_at"),
    )
    table(
        "ai_suites",
        key("id", "ai_suites", primary=True),
        owner(),
        string("name", null=False),
        string("description"),
        document("configuration"),
        flag("is_active", "true"),
        moment("created_at"),
        moment("updated_at"),
    )
    table(
        "ai_tools",
        key("id", "ai_tools", primary=True),
        string("name", null=False),
        string("description"),
        string("tool_type", null=False),
        string("version"),
        document("configuration"),
        sa.Column("pricing_tier", tier, nullable=False),
        money("credits_cost"),
        flag("is_active", "true"),
        flag("requires_approval", "false"),
        moment("created_at"),
        moment("updated_at"),
        key("suite_id", "ai_suites"),
    )
    table(
        "tool_assignments",
        key("tool_id", "ai_tools", primary=True),
        owner(primary_key=True),
        string("assigned_by"),
        moment("assigned_at"),
        sa.Column("expires_at", sa.DateTime),
        document("permissions"),
    )
    table(
        "tool_usage_logs",
        key("id", "tool_usage_logs", primary=True),
        owner(),
        key("tool_id", "ai_tools", null=False),
        string("session_id"),
        string("module_id"),
        string("action", null=False),
        document("parameters"),
        money("credits_used"),
        string("status"),
        string("error_message"),
        moment("started_at"),
        sa.Column("completed_at", sa.DateTime),
        sa.Column("duration", sa.Float),
    )
    table(
        "marketplace_listings",
        key("id", "marketplace_listings", primary=True),
        key("tool_id", "ai_tools", null=False),
        string("title", null=False),
        string("description"),
        document("features"),
        document("pricing_details"),
        string("category"),
        document("tags"),
        string("preview_url"),
        string("documentation_url"),
        flag("is_featured", "false"),
        flag("is_public", "true"),
        moment("created_at"),
        moment("updated_at"),
    )
    table(
        "credit_logs",
        key("id", "credit_logs", primary=True),
        owner(),
        string("operation", null=False),
        money("amount", null=False),
        money("balance_after", null=False),
        string("reason"),
        string("run_id"),
        moment("created_at"),
    )
    return metadata


SCHEMA = Schema(
    declare=declare,
    tables=TABLES,
    enums=ENUMS,
    references=REFERENCES,
    early_indexes=EARLY_INDEXES,
    defaults={"users": USER_DEFAULTS},
    never_written=("description", "module_id", "error_message", "expires_at"),
    written_as_null={"ai_tools": ("version",)},
    added={
        "ai_tools": {"pricing_tier": "'free'"},
        "organizations": {"subscription_tier": "'free'"},
    },
    conflict_keys={"tool_assignments": ("tool_id", "user_id")},
    actor_columns={"assigned_by": "user"},
    never_filled=("marketplace_listings",),
    # The owner alone makes the organization, and the trial tries that.
    privileges={
        "users": ("SELECT", "UPDATE"),
        "subscriptions": ("SELECT",),
        "projects": ("SELECT", "UPDATE"),
        "organizations": ("SELECT",),
        "departments": ("SELECT",),
        "marketplace_listings": ("SELECT", "DELETE"),
    },
)
