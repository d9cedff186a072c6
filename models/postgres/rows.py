"""How many rows a table has, exactly or by the planner's estimate."""

from __future__ import annotations

from sqlalchemy import Connection, text

from models.postgres.catalog import Table

EXACT_COUNT_LIMIT = 1_000_000


def estimate(connection: Connection, table: Table) -> int:
    """Rows of a table by the planner's estimate; 0 where it was never analyzed."""
    found = connection.scalar(
        text("SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = :oid"),
        {"oid": table.oid},
    )
    return int(found or 0)


def count_rows(connection: Connection, table: Table) -> int:
    """Rows of a table: counted, or the planner's estimate where that says over a million."""
    estimated = estimate(connection, table)
    if estimated > EXACT_COUNT_LIMIT:
        return estimated
    return int(connection.scalar(text(f"SELECT count(*) FROM {table.sql}")) or 0)
