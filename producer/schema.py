"""The schema step: Alembic adds ledger and target schema, in one transaction or not at all."""

from __future__ import annotations

from importlib import resources

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, text

from models import audit, identity, legacy, relations, taken, target
from models.database import LOCK_TIMEOUT_MS, retry_locks, transaction
from models.errors import NotAllowed
from models.ledger import TRY_JSONB
from models.legacy import Legacy
from models.settings import Settings
from models.steps import capture
from models.steps.indexes import record
from producer import backlog

LOCK = 0x736368656D61  # any constant: two upgrades at the same moment take turns


def upgrade(engine: Engine, settings: Settings) -> list[tuple[str, str, str]]:
    """Bring the schema up to date; returns (kind, table, name) of what was added now.

    Safe to repeat. Raises Incompatible or NotAllowed, and then nothing was changed.
    """
    return retry_locks(lambda: _upgrade(engine, settings))


def _upgrade(engine: Engine, settings: Settings) -> list[tuple[str, str, str]]:
    with transaction(engine, lock_timeout_ms=LOCK_TIMEOUT_MS, statement_timeout_ms=0) as connection:
        return bring_up(connection, settings)


def bring_up(connection: Connection, settings: Settings) -> list[tuple[str, str, str]]:
    """The same in the caller's transaction, which others who upgrade wait for."""
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
    tables = legacy.read(connection, settings)
    taken.require_own_schema(connection)
    capture.require_free_names(connection, tables)
    check_privileges(connection, tables)
    target.check(connection, tables)
    config = Config()
    config.set_main_option("script_location", str(resources.files("models") / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    # Made anew by every upgrade, whatever revision the ledger is at.
    connection.exec_driver_sql(
        f"{TRY_JSONB}; {capture.FUNCTION}; {identity.FUNCTIONS}".replace("%", "%%")
    )
    identity.settle(connection)
    relations.require_own_ledger(connection, settings)
    backlog.define(connection)
    # Outside Alembic's list of revisions: what the application dropped, or what another
    # legacy table lacks, is missing whatever revision the database says it is at.
    added = target.expand(connection, tables)
    for kind, table, name in added:
        record(connection, kind, table, name)
    if added:
        audit.note(connection, "schema upgrade", after={"added": len(added)})
    return added


def check_privileges(connection: Connection, tables: Legacy) -> None:
    """Raise NotAllowed listing every privilege that the role lacks."""
    schema = tables.users.schema
    missing = [
        what
        for what, allowed in connection.execute(
            text(
                "SELECT 'CREATE on the database (for the schema migration)',"
                "  has_database_privilege(current_database(), 'CREATE')"
                "  OR to_regnamespace('migration') IS NOT NULL"
                " UNION ALL SELECT 'CREATE on schema ' || :schema,"
                "  has_schema_privilege(CAST(:schema AS text), 'CREATE')"
            ),
            {"schema": schema},
        )
        if not allowed
    ]
    for table in (tables.users, tables.subscriptions, tables.projects):
        if not connection.scalar(
            text("SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = :oid"),
            {"oid": table.oid},
        ):
            missing.append(f"ownership of {table.label} (it belongs to {table.owner})")
    for table in (tables.users, tables.subscriptions, tables.projects):
        if not connection.scalar(
            text("SELECT has_table_privilege(CAST(:oid AS oid), 'SELECT')"), {"oid": table.oid}
        ):
            missing.append(f"SELECT on {table.label}")
        elif connection.scalar(
            text("SELECT row_security_active(CAST(:oid AS oid))"), {"oid": table.oid}
        ):
            missing.append(f"BYPASSRLS (row-level security hides rows of {table.label})")
    if missing:
        role = connection.scalar(text("SELECT current_user"))
        raise NotAllowed(
            f"The role {role} lacks: {'; '.join(missing)}",
            hint="Grant them, or connect as the tables' owner. Nothing was changed.",
        )


def describe(engine: Engine, settings: Settings) -> dict[str, object]:
    """What is there: the legacy tables, and each target table with its state and row estimate."""
    with transaction(engine) as connection:
        tables = legacy.read(connection, settings)
        found = target.read(connection, tables)
        declared = target.declared_for(tables)
        return {
            "schema": found.schema,
            "legacy": {
                role: {"table": table.label, "key": table.columns["id"].type}
                for role, table in vars(tables).items()
            },
            "target": {
                table.name: {
                    "exists": table.name in found.tables,
                    "missing_columns": [
                        column.name
                        for column in table.columns
                        if table.name in found.tables
                        and column.name not in found.tables[table.name].columns
                    ],
                }
                for table in declared.tables.values()
            },
        }
