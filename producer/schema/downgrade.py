"""Taking the target schema away again: only what `schema upgrade` and the runs added themselves."""

from __future__ import annotations

from importlib import resources

import psycopg2
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from models.engine import current
from models.engine.schema import target
from models.errors import NotAllowed
from models.ledger import relations
from models.ledger.tables import SCHEMA, audit, runs, schema_objects
from models.postgres.catalog import Table, quote
from models.postgres.database import (
    LOCK_TIMEOUT_MS,
    lock_tables,
    retry_locks,
    sqlstate,
    transaction,
)
from models.settings import Settings
from producer.runs import standing
from producer.schema.upgrade import LOCK

_DEPENDENT_OBJECTS = "2BP01"


def would_lose(engine: Engine, settings: Settings) -> dict[str, int]:
    """Rows of tables and values of columns that would go, by name; empty before an upgrade.

    Raises NotAllowed while a run is open or its rows are not rolled back.
    """
    with transaction(engine, statement_timeout_ms=0) as connection:
        if not _is_upgraded(connection):
            return {}
        standing.require_none(connection)
        relations.require_mapping(connection, settings)
        migration = current.migration()
        tables = target.of(migration.schema, migration.read(connection, settings)).tables
        found: dict[str, int] = {}
        for kind, table, name in _ours(connection):
            if kind == "table" and table in tables:
                found[table] = _count(connection, tables[table], "true")
            elif kind == "column" and table in tables and name in tables[table].columns:
                found[f"{table}.{name}"] = _count(
                    connection, tables[table], f"t.{quote(name)} IS NOT NULL"
                )
        for ledger in (runs, audit):
            query = sa.select(sa.func.count()).select_from(ledger)
            found[f"{SCHEMA}.{ledger.name}"] = int(connection.scalar(query) or 0)
        return found


def downgrade(engine: Engine, settings: Settings) -> list[tuple[str, str, str]]:
    """Drop it all in one transaction; returns (kind, table, name) of what went.

    Raises NotAllowed where somebody's object depends on one of these, and then nothing was changed.
    """
    try:
        return retry_locks(lambda: _downgrade(engine, settings))
    except DBAPIError as failure:
        if sqlstate(failure) != _DEPENDENT_OBJECTS:
            raise
        # It names objects, no values.
        said = failure.orig.diag if isinstance(failure.orig, psycopg2.Error) else None
        detail = (said and said.message_detail) or "another object"
        raise NotAllowed(
            f"Something else depends on what would be dropped: {detail.splitlines()[0]}",
            hint="Drop what depends on it first. Nothing was changed.",
        ) from None


def _downgrade(engine: Engine, settings: Settings) -> list[tuple[str, str, str]]:
    with transaction(engine, lock_timeout_ms=LOCK_TIMEOUT_MS, statement_timeout_ms=0) as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
        if not _is_upgraded(connection):
            return []
        standing.require_none(connection)
        relations.require_mapping(connection, settings)
        migration = current.migration()
        found = target.of(migration.schema, migration.read(connection, settings))
        ours = _ours(connection)
        altered = dict.fromkeys(table for _, table, _ in ours if table in found.tables)
        lock_tables(connection, [found.tables[name].sql for name in altered])
        for statement in _statements(found, ours):
            connection.exec_driver_sql(statement.replace("%", "%%"))
        config = Config()
        revisions = resources.files("models.ledger") / "revisions"
        config.set_main_option("script_location", str(revisions))
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        connection.exec_driver_sql(f"DROP TABLE {SCHEMA}.alembic_version; DROP SCHEMA {SCHEMA}")
        return [*ours, ("schema", "", SCHEMA)]


def _statements(found: target.Target, ours: list[tuple[str, str, str]]) -> list[str]:
    """The statements in their order: what hangs on a table before the table, types last."""
    schema = quote(found.schema)
    made = [table for kind, table, _ in ours if kind == "table"]
    kept = [(k, t, n) for k, t, n in ours if t not in made and t in found.tables]
    clauses = {
        "constraint": "DROP CONSTRAINT IF EXISTS {}",
        "not_null": "ALTER COLUMN {} DROP NOT NULL",
        "default": "ALTER COLUMN {} DROP DEFAULT",
        "column": "DROP COLUMN IF EXISTS {}",
    }
    added = {(table, name) for kind, table, name in ours if kind == "column"}
    statements = []
    for kind, clause in clauses.items():
        for each, table, name in kept:
            # What goes with its column needs no change of its own.
            is_moot = kind in ("not_null", "default") and (
                (table, name) in added or name not in found.tables[table].columns
            )
            if each == kind and not is_moot:
                alter = f"ALTER TABLE {found.tables[table].sql} "
                statements.append(alter + clause.format(quote(name)))
    statements += [
        f"DROP INDEX IF EXISTS {schema}.{quote(name)}" for kind, _, name in kept if kind == "index"
    ]
    if made:
        names = ", ".join(f"{schema}.{quote(name)}" for name in made)
        statements.append(f"DROP TABLE IF EXISTS {names}")
    statements += [
        f"DROP TYPE IF EXISTS {schema}.{quote(name)}" for kind, _, name in ours if kind == "type"
    ]
    return statements


def _ours(connection: Connection) -> list[tuple[str, str, str]]:
    columns = schema_objects.c
    rows = connection.execute(
        sa.select(columns.kind, columns.table_name, columns.name).order_by(
            columns.added_at, columns.kind, columns.table_name, columns.name
        )
    )
    return [(row.kind, row.table_name, row.name) for row in rows]


def _is_upgraded(connection: Connection) -> bool:
    return connection.scalar(sa.select(sa.func.to_regclass(f"{SCHEMA}.schema_objects"))) is not None


def _count(connection: Connection, table: Table, condition: str) -> int:
    query = f"SELECT count(*) FROM {table.sql} t WHERE {condition}"
    return int(connection.exec_driver_sql(query.replace("%", "%%")).scalar() or 0)
