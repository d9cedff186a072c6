"""Tables that have the columns which a legacy table needs, for the hint of one that is missing."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, text

_WITH_COLUMNS = text("""
SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND n.nspname NOT IN ('information_schema', 'migration')
  AND n.nspname NOT LIKE 'pg\\_%' AND NOT EXISTS (
    SELECT FROM unnest(CAST(:columns AS text[])) AS wanted(name) WHERE NOT EXISTS (
      SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = wanted.name
        AND a.attnum > 0 AND NOT a.attisdropped))
ORDER BY c.reltuples DESC, 1 LIMIT :most
""")


def having(connection: Connection, columns: Iterable[str]) -> list[str]:
    """Up to fifty tables that have all these columns, largest first, each quoted for SQL."""
    return list(connection.scalars(_WITH_COLUMNS, {"columns": list(columns), "most": 50}))


def named(connection: Connection, columns: Iterable[str]) -> str:
    """A sentence that names the tables which have all these columns."""
    wanted = list(columns)
    found = list(connection.scalars(_WITH_COLUMNS, {"columns": wanted, "most": 5}))
    said = ", ".join(wanted)
    return f"These have {said}: {', '.join(found)}." if found else f"No table has {said}."
