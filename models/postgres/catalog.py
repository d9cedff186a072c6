"""What the database holds right now: tables, columns, indexes and keys, as its catalog says.

Read afresh for every batch, in one query for a list of names: a default or a key may have come.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

INTEGER_TYPES = {"smallint", "integer", "bigint"}
TEXT_TYPES = {"character varying", "text", "character"}
# pg_collation.dat: that of the database, which the ledger's own columns have.
DEFAULT_COLLATION = 100

_TABLES = text("""
SELECT wanted.name AS wanted, wanted.is_beside, c.oid, n.nspname AS schema, c.relname AS name,
  c.relkind AS kind,
  pg_catalog.pg_get_userbyid(c.relowner) AS owner,
  (SELECT json_agg(json_build_object(
        'name', a.attname,
        'type', format_type(a.atttypid, a.atttypmod),
        'base', format_type(a.atttypid, NULL),
        'enum', (SELECT json_agg(e.enumlabel ORDER BY e.enumsortorder)
                 FROM pg_enum e WHERE e.enumtypid = a.atttypid),
        'length', CASE WHEN a.atttypmod > 4 AND a.atttypid IN (1042, 1043)
                  THEN a.atttypmod - 4 END,
        'scale', CASE WHEN a.atttypmod > 4 AND a.atttypid = 1700
                 THEN (a.atttypmod - 4) & 65535 END,
        'collation', a.attcollation::bigint,
        'deterministic', coalesce((SELECT l.collisdeterministic FROM pg_collation l
                                   WHERE l.oid = a.attcollation), true),
        'not_null', a.attnotnull,
        'default', CASE WHEN a.attgenerated = '' AND a.attidentity = ''
                   THEN pg_get_expr(d.adbin, d.adrelid) END,
        'generated', a.attgenerated <> '' OR a.attidentity <> '',
        'is_always', a.attgenerated <> '' OR a.attidentity = 'a')
      ORDER BY a.attnum)
   FROM pg_attribute a
   LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
   WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns,
  (SELECT json_agg(json_build_object(
        'name', x.relname, 'unique', i.indisunique AND i.indimmediate AND i.indpred IS NULL,
        'valid', i.indisvalid, 'partial', i.indpred IS NOT NULL,
        'columns', (SELECT json_agg(a.attname ORDER BY k.position)
                    FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, position)
                    LEFT JOIN pg_attribute a
                      ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                    WHERE k.position <= i.indnkeyatts)))
   FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
   WHERE i.indrelid = c.oid) AS indexes,
  (SELECT json_agg(json_build_object(
        'name', f.conname, 'refers_to', f.confrelid::bigint, 'on_delete', f.confdeltype,
        'valid', f.convalidated,
        'columns', (SELECT json_agg(a.attname ORDER BY k.position)
                    FROM unnest(f.conkey) WITH ORDINALITY AS k(attnum, position)
                    JOIN pg_attribute a
                      ON a.attrelid = f.conrelid AND a.attnum = k.attnum)))
   FROM pg_constraint f WHERE f.conrelid = c.oid AND f.contype = 'f') AS keys
FROM (
  SELECT name, name AS sql, position, false AS is_beside
  FROM unnest(CAST(:names AS text[])) WITH ORDINALITY AS w(name, position)
  UNION ALL
  SELECT name, home.sql || '.' || name, position, true
  FROM unnest(CAST(:beside AS text[])) WITH ORDINALITY AS w(name, position), (
    SELECT quote_ident(n.nspname) AS sql
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid = to_regclass(CAST(:first AS text))) AS home
) AS wanted
JOIN pg_class c ON c.oid = to_regclass(wanted.sql)
JOIN pg_namespace n ON n.oid = c.relnamespace
ORDER BY wanted.position
""")


@dataclass(frozen=True)
class Column:
    """One column. `type` is as declared (`character varying(36)`), `base` without modifier."""

    name: str
    type: str
    base: str
    enum: tuple[str, ...] | None
    length: int | None
    scale: int | None
    # The oid of the order that the column's texts have; 0 for what is no text.
    collation: int
    # False: texts that differ may be equal, such as those that differ in case.
    deterministic: bool
    not_null: bool
    default: str | None
    # Whether it has a value without a default, and whether it takes no other one.
    generated: bool
    is_always: bool


@dataclass(frozen=True)
class Index:
    """An index over plain columns; an expression stands as None in `columns`."""

    name: str
    columns: tuple[str | None, ...]
    unique: bool
    valid: bool
    partial: bool


@dataclass(frozen=True)
class ForeignKey:
    """A foreign key; `refers_to` is the oid of the other table."""

    name: str
    columns: tuple[str, ...]
    refers_to: int
    on_delete: str
    valid: bool


@dataclass(frozen=True)
class Table:
    """One table as found."""

    oid: int
    schema: str
    name: str
    kind: str
    owner: str
    columns: dict[str, Column]
    indexes: tuple[Index, ...]
    keys: tuple[ForeignKey, ...]

    @property
    def sql(self) -> str:
        """The table's qualified and quoted name."""
        return f"{quote(self.schema)}.{quote(self.name)}"

    @property
    def label(self) -> str:
        """The table's name as an operator would write it."""
        return f"{self.schema}.{self.name}"

    def has_index_on(self, column: str) -> bool:
        """Whether some valid, complete index has `column` as its first column."""
        return any(
            index.valid and not index.partial and index.columns[:1] == (column,)
            for index in self.indexes
        )

    def is_unique(self, column: str) -> bool:
        """Whether a valid unique index stands on `column` alone."""
        return any(
            index.valid and index.unique and index.columns == (column,) for index in self.indexes
        )

    def key_on(self, column: str) -> ForeignKey | None:
        """The foreign key on exactly this column, or None."""
        return next((key for key in self.keys if key.columns == (column,)), None)


def default_of(table: Table, column: str) -> str:
    """SQL text of a column's server default, or NULL where there is none."""
    found = table.columns.get(column)
    default = (found.default if found else None) or "NULL"
    # A lone colon in a literal is not the beginning of a bound parameter.
    return re.sub(r"(?<!:):(?!:)", r"\\:", default)


def quote(identifier: str) -> str:
    """Quote one SQL identifier."""
    return '"' + identifier.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Quote one SQL string that the program itself chose."""
    return "'" + text.replace("'", "''") + "'"


def quote_name(name: str) -> str:
    """Quote a table's name that may carry a schema (`schema.table`)."""
    return ".".join(quote(part) for part in name.split("."))


def read_tables(connection: Connection, names: list[str]) -> dict[str, Table]:
    """The tables that exist among `names` (each quoted for SQL), by that name."""
    return read_both(connection, names, [])[0]


def read_both(
    connection: Connection, names: list[str], beside: list[str]
) -> tuple[dict[str, Table], dict[str, Table]]:
    """`read_tables`; and the tables among `beside` that are in the schema of the first of `names`.

    Those of `beside` are quoted, and have no schema.
    """
    values = {"names": names, "beside": beside, "first": names[0] if names else None}
    found: tuple[dict[str, Table], dict[str, Table]] = {}, {}
    for row in connection.execute(_TABLES, values):
        found[row.is_beside][row.wanted] = _table(row._mapping)
    return found


def _table(row: Any) -> Table:
    columns = [
        Column(**{**column, "enum": column["enum"] and tuple(column["enum"])})
        for column in row["columns"] or ()
    ]
    return Table(
        oid=int(row["oid"]),
        schema=row["schema"],
        name=row["name"],
        kind=row["kind"],
        owner=row["owner"],
        columns={column.name: column for column in columns},
        indexes=tuple(
            Index(**{**index, "columns": tuple(index["columns"])}) for index in row["indexes"] or ()
        ),
        keys=tuple(
            ForeignKey(**{**key, "columns": tuple(key["columns"])}) for key in row["keys"] or ()
        ),
    )


_TRIGGERS = text("""
SELECT t.tgname || ' on ' || n.nspname || '.' || c.relname
FROM pg_trigger t
JOIN pg_class c ON c.oid = t.tgrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_proc p ON p.oid = t.tgfoid
JOIN pg_namespace f ON f.oid = p.pronamespace
WHERE NOT t.tgisinternal AND :function IN (
  p.proname, quote_ident(p.proname), quote_ident(f.nspname) || '.' || quote_ident(p.proname))
ORDER BY 1 LIMIT 5
""")


def name_triggers(connection: Connection, function: str) -> str:
    """The triggers that call a function, in words that follow its name; '' where none does."""
    found = connection.scalars(_TRIGGERS, {"function": function}).all() if function else []
    return f" (trigger {', '.join(found)})" if found else ""


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


def tables_having(connection: Connection, columns: Iterable[str], most: int = 50) -> list[str]:
    """Up to so many tables that have all these columns, largest first, each quoted for SQL."""
    return list(connection.scalars(_WITH_COLUMNS, {"columns": list(columns), "most": most}))


def tables_with(connection: Connection, columns: Iterable[str]) -> str:
    """A sentence that names the tables which have all these columns."""
    wanted = list(columns)
    found = tables_having(connection, wanted, most=5)
    said = ", ".join(wanted)
    return f"These have {said}: {', '.join(found)}." if found else f"No table has {said}."
