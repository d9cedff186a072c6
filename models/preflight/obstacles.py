"""What the catalog says against a run: every obstacle of every table that is read or written.

`models.engine.source` and `models.engine.schema.target` judge columns and types; this judges the
rest of a table. What cannot be judged from the catalog is a warning, and `producer.checks.trial`
tries it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from models.engine.schema.declaration import Schema
from models.engine.schema.target import Target
from models.engine.source import Sources, SourceTable
from models.errors import Incompatible, MigrationError, NotAllowed
from models.postgres.catalog import Table

LEGACY, PRIVILEGES, TARGET = "legacy tables", "privileges", "target tables"
CONSTRAINTS = "constraints and triggers"
_ALL = ("SELECT", "INSERT", "UPDATE", "DELETE")

# row_security_active() raises for what the role may not see, so privileges come first.
_SHAPE = text("""
SELECT w.name, c.relkind AS kind, c.relpersistence AS persistence,
  EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid) AS has_children,
  EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = c.oid) AS is_child,
  pg_has_role(c.relowner, 'USAGE') AS is_owner, quote_ident(current_role) AS role,
  CASE WHEN has_any_column_privilege(c.oid, 'SELECT') THEN row_security_active(c.oid) END
    AS hides_rows,
  ARRAY(SELECT p FROM unnest(w.privileges) AS p WHERE NOT CASE
    WHEN p = 'DELETE' THEN has_table_privilege(c.oid, p)
    ELSE has_any_column_privilege(c.oid, p) END) AS lacks,
  ARRAY(SELECT r.rulename::text FROM pg_rewrite r WHERE r.ev_class = c.oid
    AND r.ev_enabled <> 'D' AND r.ev_type = ANY(w.events)
    AND r.rulename <> '_RETURN' ORDER BY 1) AS rules,
  ARRAY(SELECT format('%s (function %s%s)', t.tgname, t.tgfoid::regproc,
      CASE WHEN t.tginitdeferred THEN ', deferred' ELSE '' END)
    FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgenabled IN ('O', 'A')
    AND t.tgname NOT LIKE 'migration_capture_%'
    AND t.tgtype & w.trigger_events <> 0 ORDER BY 1) AS triggers,
  ARRAY(SELECT k.conname::text FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'c'
    ORDER BY 1) AS checks,
  ARRAY(SELECT format('%s', CASE k.contype WHEN 'c' THEN format('NOT (%s)',
        pg_get_expr(k.conbin, k.conrelid))
      ELSE (SELECT format('%I IS NULL', a.attname) FROM pg_attribute a
        WHERE a.attrelid = k.conrelid AND a.attnum = k.conkey[1]) END) || E'\\t' || k.conname
    FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype IN ('c', 'n')
    AND NOT k.convalidated AND k.conname !~ '^migration_not_null(_[0-9]+)?$') AS unproved,
  ARRAY(SELECT x.relname::text FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
    WHERE i.indrelid = c.oid AND (i.indisunique OR i.indisexclusion) AND i.indisready
    AND NOT i.indisprimary AND NOT (i.indisunique AND i.indpred IS NULL
      AND i.indnkeyatts = 1 AND coalesce((SELECT a.attname FROM pg_attribute a
        WHERE a.attrelid = i.indrelid AND a.attnum = i.indkey[0]), '') = 'id')
    ORDER BY 1) AS uniques,
  c.relreplident = 'f' OR EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid
    AND i.indisvalid AND CASE c.relreplident WHEN 'd' THEN i.indisprimary AND i.indimmediate
      WHEN 'i' THEN i.indisreplident ELSE false END) AS has_identity,
  ARRAY(SELECT DISTINCT p.pubname::text FROM pg_publication_tables p
    JOIN pg_publication o ON o.pubname = p.pubname AND (o.pubupdate OR o.pubdelete)
    WHERE p.schemaname = n.nspname AND p.tablename = c.relname) AS publications,
  ARRAY(SELECT format('%s of %s', f.conname, f.conrelid::regclass) FROM pg_constraint f
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY(f.confkey)
    WHERE f.contype = 'f' AND f.confrelid = c.oid AND a.attname = ANY(w.rewritten))
    AS pointed_at
FROM jsonb_to_recordset(CAST(:tables AS jsonb))
  AS w(name text, oid oid, privileges text[], rewritten text[], events "char"[], trigger_events int)
JOIN pg_class c ON c.oid = w.oid JOIN pg_namespace n ON n.oid = c.relnamespace
""")
# A table that a mapping reaches: the row is found by its id.
_REACHED = text("""
SELECT quote_ident(current_role) AS role, label, is_readable,
  CASE WHEN is_readable THEN row_security_active(oid) END AS hides_rows
FROM (SELECT c.oid, format('%I.%I', n.nspname, c.relname) AS label,
    has_column_privilege(c.oid, 'id', 'SELECT')
    AND has_column_privilege(c.oid, CAST(:value AS text), 'SELECT') AS is_readable
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE c.oid = to_regclass(:name)) AS reached
""")
# pg_trigger.tgtype: INSERT 4, DELETE 8, UPDATE 16.
# pg_rewrite.ev_type: UPDATE 2, INSERT 3, DELETE 4.
_UPDATE_ONLY = {"events": ["2"], "trigger_events": 16}
_ANY_WRITE = {"events": ["2", "3", "4"], "trigger_events": 4 | 8 | 16}
_NO_WRITE = {"events": [], "trigger_events": 0}


@dataclass(frozen=True)
class Obstacle:
    """One thing in the way: the row of `check` it belongs to, what it is, how it is fixed.

    Where `is_fatal` is false the run is not refused for it; otherwise by an error of that kind.
    """

    row: str
    what: str
    hint: str = ""
    is_fatal: bool = True
    kind: type[MigrationError] = Incompatible


def _is_written(schema: Schema, role: str, table: Table) -> bool:
    source = table.source if isinstance(table, SourceTable) else None
    return source is None or bool(source.writes or role in schema.defaults)


def _asked(schema: Schema, role: str, table: Table) -> dict[str, Any]:
    """What `_SHAPE` needs to know of a table."""
    source = table.source if isinstance(table, SourceTable) else None
    is_written = _is_written(schema, role, table)
    events = _ANY_WRITE if source is None else _UPDATE_ONLY if is_written else _NO_WRITE
    needed = _ALL if source is None else ("SELECT", "UPDATE") if is_written else ("SELECT",)
    return {
        **events,
        "name": role,
        "oid": table.oid,
        "privileges": list(schema.privileges.get(role, needed)),
        "rewritten": list(source.writes) if source else [],
    }


def find(
    connection: Connection, schema: Schema, sources: Sources, target: Target
) -> list[Obstacle]:
    """All obstacles, table by table; reads rows for unvalidated constraints only."""
    adopted = {
        name: table for name, table in target.tables.items() if name not in sources.by_plural
    }
    tables = {**sources.by_plural, **adopted}
    asked = [_asked(schema, role, table) for role, table in tables.items()]
    shapes = {
        shape.name: shape for shape in connection.execute(_SHAPE, {"tables": json.dumps(asked)})
    }
    found: list[Obstacle] = []
    for role, table in tables.items():
        source = table.source if isinstance(table, SourceTable) else None
        shape, is_written = shapes[role], _is_written(schema, role, table)
        row = LEGACY if source else TARGET
        # Where nothing refers to a table, it may be unlogged.
        may_be_unlogged = source is not None and not sources.children(source.entity)
        found += _kinds(row, table, shape, may_be_unlogged=may_be_unlogged)
        found += _privileges(table, shape)
        found += _reached(connection, table) if isinstance(table, SourceTable) else ()
        if is_written:
            found += _refusals(row, table, shape)
            if shape.is_owner:
                found += _unproved(connection, row, table, shape)
        if source is None:
            found += _references(schema, role, table, target)
            if role not in schema.never_filled:
                found += _may_refuse(table, shape)
        if shape.triggers:
            found.append(
                Obstacle(
                    CONSTRAINTS,
                    f"{table.label} has triggers: {', '.join(shape.triggers)}",
                    "They run for the migration's rows too. Neither a trial nor a rollback undoes"
                    " what they do outside the database, or the sequences that they advance.",
                    is_fatal=False,
                )
            )
    return [*found, *_blocking(adopted.values(), sources)]


def _kinds(row: str, table: Table, shape: Any, *, may_be_unlogged: bool) -> Iterator[Obstacle]:
    if shape.kind != "r":
        return
    if shape.has_children or shape.is_child:
        other = "has child tables" if shape.has_children else "is a child of another table"
        yield Obstacle(
            row, f"{table.label} {other} (INHERITS)", f"ALTER TABLE … NO INHERIT {table.label}"
        )
    if shape.persistence == "t":
        yield Obstacle(row, f"{table.label} is temporary", "Make it a permanent table.")
    elif shape.persistence == "u":
        yield Obstacle(
            row,
            f"{table.label} is unlogged: a crash of the server empties it, and no permanent table"
            " may refer to it",
            f"ALTER TABLE {table.label} SET LOGGED",
            is_fatal=not may_be_unlogged,
        )


def _privileges(table: Table, shape: Any) -> Iterator[Obstacle]:
    if not shape.is_owner:
        what = f"ownership of {table.label} (it belongs to {table.owner})"
        yield _lack(what, f"Connect as {table.owner} or a member of that role")
    for name in shape.lacks:
        yield _lack(f"{name} on {table.label}", f"GRANT {name} ON {table.label} TO {shape.role}")
    if shape.hides_rows:
        yield _hides(table.label, shape.role)


def _reached(connection: Connection, table: SourceTable) -> Iterator[Obstacle]:
    """What keeps the role from reading the rows that mapped columns point at."""
    for column, mapped in table.mapped.items():
        if not mapped.reached:
            continue
        found = connection.execute(
            _REACHED, {"name": mapped.reached, "value": mapped.value.name}
        ).one()
        if not found.is_readable:
            columns = f"(id, {mapped.value.name}) ON {found.label}"
            yield _lack(
                f"SELECT {columns}, which the mapping reaches from {table.label}.{column}",
                f"GRANT SELECT {columns} TO {found.role}",
            )
        elif found.hides_rows:
            yield _hides(found.label, found.role)


def _lack(what: str, hint: str) -> Obstacle:
    return Obstacle(PRIVILEGES, what, hint, kind=NotAllowed)


def _hides(label: str, role: str) -> Obstacle:
    return _lack(
        f"BYPASSRLS (row-level security hides rows of {label})",
        f"ALTER ROLE {role} BYPASSRLS, or connect as a role that sees all rows",
    )


def _refusals(row: str, table: Table, shape: Any) -> Iterator[Obstacle]:
    for rule in shape.rules:
        yield Obstacle(
            row,
            f"{table.label} has the rule {rule}, with which the migration's statements cannot work",
            f"DROP RULE {rule} ON {table.label}, or make a trigger of it.",
        )
    if shape.publications and not shape.has_identity:
        yield Obstacle(
            row,
            f"{table.label} is published ({', '.join(shape.publications)}) and has no replica"
            " identity, so that no row of it can be updated",
            f"Give it a primary key, or: ALTER TABLE {table.label} REPLICA IDENTITY FULL",
        )
    for key in shape.pointed_at:
        yield Obstacle(
            row,
            f"The foreign key {key} points at a column of {table.label} that the migration writes",
            "Drop that foreign key first.",
        )


def _unproved(connection: Connection, row: str, table: Table, shape: Any) -> Iterator[Obstacle]:
    """A constraint that is NOT VALID is checked for each row that is written, old ones too."""
    for entry in shape.unproved:
        condition, name = entry.rsplit("\t", 1)
        count = connection.exec_driver_sql(
            f"SELECT count(*) FROM {table.sql} WHERE {condition}".replace("%", "%%")
        ).scalar()
        if count:
            yield Obstacle(
                row,
                f"{count:,} rows of {table.label} do not satisfy its constraint {name} (NOT VALID),"
                " so that they cannot be updated",
                "Fix those rows, or drop the constraint.",
            )


def _references(schema: Schema, role: str, table: Table, target: Target) -> Iterator[Obstacle]:
    """Foreign keys of an adopted table that point elsewhere than the migration writes."""
    wanted = {r.column: r.refers_to for r in schema.references if r.table == role}
    for key in table.keys:
        for column in key.columns:
            other = target.tables.get(wanted.get(column, ""))
            if other is not None and key.refers_to != other.oid and len(key.columns) == 1:
                yield Obstacle(
                    TARGET,
                    f"{table.label}.{column}: expected a foreign key to {other.label}, found one to"
                    f" another table ({key.name})",
                    "Drop that foreign key, or rename the table that is in the way.",
                )


def _blocking(tables: Iterable[Table], sources: Sources) -> Iterator[Obstacle]:
    keys = [
        f"{table.label}.{', '.join(key.columns)}"
        for table in tables
        for key in table.keys
        if key.refers_to == sources.first.oid and key.on_delete in ("a", "r")
    ]
    if keys:
        plural = sources.first.source.plural
        yield Obstacle(
            TARGET,
            f"foreign keys that keep {plural} from being deleted: {', '.join(keys)}",
            f"Give them ON DELETE CASCADE, if the application must still delete {plural}.",
            is_fatal=False,
        )


def _may_refuse(table: Table, shape: Any) -> Iterator[Obstacle]:
    what = [
        f"{kind} {', '.join(names)}"
        for kind, names in (("CHECK", shape.checks), ("unique", shape.uniques))
        if names
    ]
    if what:
        yield Obstacle(
            CONSTRAINTS,
            f"{table.label} has constraints of its own: {'; '.join(what)}",
            "A row that they refuse is quarantined. The trial has tried a few rows only.",
            is_fatal=False,
        )
