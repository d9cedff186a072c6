"""The SQL that empties a database for a restore, and which entries of the dump are left out.

What stays is what the dump does not have to create: schemas, extensions with their members, and
other objects outside schemas that need nothing of what is dropped. `restorable` judges before.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, text

from models.postgres.catalog import quote
from producer.backup.restorable import OBJECTS, OUTSIDE

# How PostgreSQL calls a kind of object, in DROP and in the list of a dump.
_DROP = {"foreign-data wrapper": "FOREIGN DATA WRAPPER", "statistics object": "STATISTICS"}
_LISTED = {
    "foreign-data wrapper": ("FOREIGN DATA WRAPPER", "FOREIGN DATA WRAPPER"),
    "server": ("SERVER", "FOREIGN SERVER"),
    "language": ("PROCEDURAL LANGUAGE", "LANGUAGE"),
}
_OWN_DEFAULTS = """
SELECT defaclnamespace::regnamespace::text AS schema, defaclnamespace = 0 AS is_global,
  CASE defaclobjtype WHEN 'r' THEN 'TABLES' WHEN 'S' THEN 'SEQUENCES' WHEN 'f' THEN 'FUNCTIONS'
    WHEN 'T' THEN 'TYPES' WHEN 'n' THEN 'SCHEMAS' ELSE 'LARGE OBJECTS' END AS kind,
  ARRAY(SELECT DISTINCT CASE WHEN a.grantee = 0 THEN 'PUBLIC'
    ELSE quote_ident(pg_get_userbyid(a.grantee)) END FROM aclexplode(defaclacl) AS a) AS grantees
FROM pg_default_acl WHERE defaclrole = (SELECT oid FROM pg_roles WHERE rolname = current_user)
"""
_FOREIGN_DEFAULTS = """
SELECT DISTINCT pg_get_userbyid(defaclrole) FROM pg_default_acl
WHERE NOT pg_has_role(defaclrole, 'USAGE')
"""
_SCHEMAS = """
SELECT n.nspname AS name, pg_has_role(n.nspowner, 'USAGE') AS is_ours, EXISTS (
  SELECT FROM pg_depend d WHERE d.deptype = 'e' AND (
    d.classid = 'pg_namespace'::regclass AND d.objid = n.oid
    OR (d.classid, d.objid) IN (
      SELECT 'pg_class'::regclass::oid, oid FROM pg_class WHERE relnamespace = n.oid
      UNION ALL SELECT 'pg_type'::regclass, oid FROM pg_type WHERE typnamespace = n.oid
      UNION ALL SELECT 'pg_proc'::regclass, oid FROM pg_proc WHERE pronamespace = n.oid)))
  OR EXISTS (SELECT FROM pg_extension e WHERE e.extnamespace = n.oid) AS has_extension
FROM pg_namespace n WHERE n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
"""
# Tables of extensions whose rows a dump holds, and whose members' privileges it may hold.
_CONFIGURED = """
SELECT n.nspname AS schema, c.relname AS name, x.condition,
  has_table_privilege(c.oid, 'DELETE') AND has_table_privilege(c.oid, 'INSERT') AS is_ours
FROM pg_extension e, unnest(e.extconfig, e.extcondition) AS x (oid, condition)
JOIN pg_class c ON c.oid = x.oid JOIN pg_namespace n ON n.oid = c.relnamespace
"""
_MEMBERS = """
SELECT n.nspname AS schema, kind, m.name FROM pg_depend d JOIN (
  SELECT 'pg_class'::regclass::oid AS class, oid, relnamespace AS schema, 'TABLE' AS kind,
    quote_ident(relname) || ' ' AS name FROM pg_class
  UNION ALL SELECT 'pg_proc'::regclass, oid, pronamespace, 'FUNCTION', quote_ident(proname) || '('
    FROM pg_proc
  UNION ALL SELECT 'pg_type'::regclass, oid, typnamespace, 'TYPE', quote_ident(typname) || ' '
    FROM pg_type
) AS m ON m.class = d.classid AND m.oid = d.objid
JOIN pg_namespace n ON n.oid = m.schema WHERE d.deptype = 'e'
"""


def prepare(connection: Connection, listed: list[str]) -> tuple[str, list[str]]:
    """The script that empties the database, and the entries of the dump's list to restore.

    `listed` are the lines of `pg_restore --list`.
    """
    roles = set(connection.scalars(text("SELECT rolname FROM pg_roles")))
    dumped = _Dumped(listed, roles)
    script = ["SET lock_timeout = '10s';", "SET client_min_messages = warning;"]
    left_out: list[str] = []
    # First, since event triggers would see all that follows.
    for each in sorted(_read(connection, OUTSIDE), key=lambda row: row.type != "event trigger"):
        kind = _DROP.get(each.type, each.type.upper())
        entry, acl = _LISTED.get(each.type, (kind, kind))
        if each.type == "user mapping":
            user, _, server = each.identity.partition(" on server ")
            name, drop = f"USER MAPPING {user} SERVER {server}", f"FOR {user} SERVER {server}"
        else:
            name, drop = each.name or each.identity, each.identity
        if each.stays and dumped.has(f"{entry} - {name} "):
            left_out.append(f"{entry} - {name} ")
            left_out += [f"{what} - {acl} {each.identity} " for what in ("ACL", "COMMENT")]
            left_out.append(f"COMMENT - {kind} {each.identity} ")
        elif each.is_ours:
            script.append(f"DROP {kind} IF EXISTS {drop} CASCADE;")
    script += [
        f"DROP {_DROP.get(kind, kind.upper())} IF EXISTS {identity} CASCADE;"
        for kind, identity in connection.exec_driver_sql(
            f"SELECT (identity).type, (identity).identity FROM ({OBJECTS}) AS o"
            " ORDER BY class <> 'pg_class'::regclass, object"
        )
    ]
    script.append("SELECT pg_catalog.lo_unlink(oid) FROM pg_catalog.pg_largeobject_metadata;")
    for schema in _read(connection, _SCHEMAS):
        if schema.name != "public" and not (
            schema.has_extension or dumped.has(f"SCHEMA - {schema.name} ")
        ):
            script.append(f"DROP SCHEMA {quote(schema.name)} CASCADE;")
            continue
        left_out.append(f"SCHEMA - {schema.name} ")
        left_out.append(f"PUBLICATION TABLES IN SCHEMA {schema.name} ")
        if not schema.is_ours:
            left_out += [f"{what} - SCHEMA {schema.name} " for what in ("ACL", "COMMENT")]
    for table in _read(connection, _CONFIGURED):
        if table.is_ours:
            where = f"{quote(table.schema)}.{quote(table.name)} {table.condition or ''}"
            script.append(f"DELETE FROM {where};")
        else:
            left_out.append(f"TABLE DATA {table.schema} {table.name} ")
    members = [f"ACL {m.schema} {m.kind} {m.name}" for m in _read(connection, _MEMBERS)]
    foreign = tuple(f" {role}" for role in connection.scalars(text(_FOREIGN_DEFAULTS)))
    kept = [
        line
        for line in listed
        if not dumped.is_one_of(line, left_out)
        and not _entry(line).startswith(tuple(members))
        and not (_entry(line).startswith("DEFAULT ACL ") and line.endswith(foreign))
    ]
    return "\n".join([*script, *_reset_defaults(connection), ""]), kept


def _reset_defaults(connection: Connection) -> list[str]:
    """The role's default privileges must not reach the tables that it is about to create."""
    statements = []
    for row in _read(connection, _OWN_DEFAULTS):
        place = "" if row.is_global else f" IN SCHEMA {row.schema}"
        alter = f"ALTER DEFAULT PRIVILEGES{place}"
        statements += [f"{alter} REVOKE ALL ON {row.kind} FROM {name};" for name in row.grantees]
        if row.is_global:
            statements.append(f"{alter} GRANT ALL ON {row.kind} TO CURRENT_USER;")
            if row.kind in ("FUNCTIONS", "TYPES"):
                statements.append(f"{alter} GRANT ALL ON {row.kind} TO PUBLIC;")
    return statements


class _Dumped:
    """The entries of a dump's list; each line ends with a role, whose name may hold spaces."""

    def __init__(self, lines: list[str], roles: set[str]) -> None:
        self._roles = roles
        self._entries = [_entry(line) for line in lines]

    def has(self, start: str) -> bool:
        return any(self._is(entry, start) for entry in self._entries)

    def is_one_of(self, line: str, starts: list[str]) -> bool:
        return any(self._is(_entry(line), start) for start in starts)

    def _is(self, entry: str, start: str) -> bool:
        if not entry.startswith(start):
            return False
        rest = entry.removeprefix(start).strip()
        is_member = start.startswith("PUBLICATION TABLES")
        return is_member or not rest or rest in self._roles or start.startswith("EXTENSION")


def _entry(line: str) -> str:
    """`218; 1259 16385 TABLE public users owner` without its numbers."""
    return line.split(" ", 3)[-1] + " " if line[:1].isdigit() else ""


def _read(connection: Connection, query: str) -> list[Any]:
    return list(connection.exec_driver_sql(query.replace("%", "%%")))
