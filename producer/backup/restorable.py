"""What a role could not put back: judged from the catalog before a backup is written.

A restore keeps schemas, extensions and other objects outside schemas that are still there, and
drops and creates everything else again, as the role that runs it. `emptying` is that side of it.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

from models.errors import MigrationError
from models.postgres import sessions

MOST_SHOWN = 20


class NotRestorable(MigrationError):
    """The role could not restore the backup that it was about to write. Nothing was written."""

    kind = "not_restorable"


# Every object that a restore drops and creates again, with its schema and owner; an extension's
# members, and what comes and goes with a table, are none of these. The numbers of catalogs are
# resolved by PostgreSQL; objects below 16384 are its own.
OBJECTS = """
SELECT found.*, pg_identify_object(class, object, 0) AS identity FROM (
  SELECT 'pg_class'::regclass::oid AS class, oid AS object, relnamespace AS schema,
    relowner AS owner FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
  UNION ALL SELECT 'pg_proc'::regclass, oid, pronamespace, proowner FROM pg_proc
  UNION ALL SELECT 'pg_type'::regclass, t.oid, typnamespace, typowner FROM pg_type t
    WHERE typtype IN ('d', 'e', 'r') OR typtype = 'b' AND NOT EXISTS (
      SELECT FROM pg_type e WHERE e.typarray = t.oid)
    OR typtype = 'c' AND EXISTS (
      SELECT FROM pg_class c WHERE c.oid = t.typrelid AND c.relkind = 'c')
  UNION ALL SELECT 'pg_operator'::regclass, oid, oprnamespace, oprowner FROM pg_operator
  UNION ALL SELECT 'pg_opfamily'::regclass, oid, opfnamespace, opfowner FROM pg_opfamily
  UNION ALL SELECT 'pg_opclass'::regclass, oid, opcnamespace, opcowner FROM pg_opclass
  UNION ALL SELECT 'pg_collation'::regclass, oid, collnamespace, collowner FROM pg_collation
  UNION ALL SELECT 'pg_conversion'::regclass, oid, connamespace, conowner FROM pg_conversion
  UNION ALL SELECT 'pg_ts_config'::regclass, oid, cfgnamespace, cfgowner FROM pg_ts_config
  UNION ALL SELECT 'pg_ts_dict'::regclass, oid, dictnamespace, dictowner FROM pg_ts_dict
  UNION ALL SELECT 'pg_ts_parser'::regclass, oid, prsnamespace, 10 FROM pg_ts_parser
  UNION ALL SELECT 'pg_ts_template'::regclass, oid, tmplnamespace, 10 FROM pg_ts_template
  UNION ALL SELECT 'pg_statistic_ext'::regclass, oid, stxnamespace, stxowner FROM pg_statistic_ext
) AS found
JOIN pg_namespace n ON n.oid = found.schema
WHERE object >= 16384 AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = class AND d.objid = object
    AND d.objsubid = 0 AND d.deptype IN ('e', 'i'))
"""
# What lives in no schema, whether it stays in a restore (nothing that is dropped is needed by
# it), and by whom it can be dropped or changed.
OUTSIDE = f"""
WITH RECURSIVE doomed AS (
  SELECT class, object FROM ({OBJECTS}) AS o
  UNION
  SELECT d.classid, d.objid FROM pg_depend d
  JOIN doomed ON d.refclassid = doomed.class AND d.refobjid = doomed.object
  WHERE d.deptype IN ('n', 'a', 'i') AND d.classid <> 'pg_publication_rel'::regclass
),
outside AS (
  SELECT 'pg_extension'::regclass::oid AS class, oid AS object, extowner AS owner FROM pg_extension
  UNION ALL SELECT 'pg_foreign_data_wrapper'::regclass, oid, fdwowner FROM pg_foreign_data_wrapper
  UNION ALL SELECT 'pg_foreign_server'::regclass, oid, srvowner FROM pg_foreign_server
  UNION ALL SELECT 'pg_user_mapping'::regclass, m.umid, s.srvowner
    FROM pg_user_mappings m JOIN pg_foreign_server s ON s.oid = m.srvid
  UNION ALL SELECT 'pg_language'::regclass, oid, lanowner FROM pg_language
  UNION ALL SELECT 'pg_am'::regclass, oid, 10 FROM pg_am
  UNION ALL SELECT 'pg_event_trigger'::regclass, oid, evtowner FROM pg_event_trigger
  UNION ALL SELECT 'pg_publication'::regclass, oid, pubowner FROM pg_publication
  UNION ALL SELECT 'pg_cast'::regclass, oid, 10 FROM pg_cast
  UNION ALL SELECT 'pg_transform'::regclass, oid, 10 FROM pg_transform
)
SELECT outside.*, i.type, i.name, i.identity,
  NOT EXISTS (SELECT FROM doomed d WHERE d.class = outside.class AND d.object = outside.object)
    AND type NOT IN ('cast', 'transform') AS stays,
  pg_has_role(owner, 'USAGE') AS is_ours
FROM outside, pg_identify_object(class, object, 0) AS i
WHERE object >= 16384 AND NOT EXISTS (SELECT FROM pg_depend d
  WHERE d.classid = class AND d.objid = object AND d.deptype IN ('e', 'i'))
"""

# pg_has_role's SET tells the roles that it may hand an object over to; before 16, membership did.
_OWNED = """
  SELECT name AS what, 'it belongs to ' || owner_name AS why FROM owned
  WHERE NOT (pg_has_role(owner, '{set}') AND pg_has_role(owner, 'USAGE'))
  UNION ALL
  SELECT name, 'CREATE on schema ' || nspname || ' is missing' FROM owned
  WHERE NOT has_schema_privilege(schema, 'CREATE')
  UNION ALL
  SELECT name, 'its owner ' || owner_name || ' lacks CREATE on schema ' || nspname FROM owned
  WHERE NOT has_schema_privilege(owner, schema, 'CREATE')
  UNION ALL
  SELECT name, 'only a superuser can create it' FROM owned
  WHERE (identity).type IN ('operator class', 'operator family', 'text search parser',
      'text search template')
    OR class = 'pg_type'::regclass AND EXISTS (
      SELECT FROM pg_type t WHERE t.oid = object AND t.typtype = 'b')
    OR class = 'pg_proc'::regclass AND EXISTS (
      SELECT FROM pg_proc p WHERE p.oid = object AND p.proleakproof)
"""
# What a table, a function or a foreign table is made with.
_MADE_WITH = """
  UNION ALL
  SELECT name, 'its language ' || l.lanname || ' is for superusers' FROM owned
  JOIN pg_proc p ON class = 'pg_proc'::regclass AND p.oid = object AND p.prokind <> 'a'
  JOIN pg_language l ON l.oid = p.prolang
  WHERE NOT l.lanpltrusted OR NOT has_language_privilege(l.oid, 'USAGE')
  UNION ALL
  SELECT name, 'CREATE on tablespace ' || s.spcname || ' is missing' FROM owned
  JOIN pg_class c ON class = 'pg_class'::regclass AND c.oid = object
  JOIN pg_tablespace s ON s.oid = c.reltablespace
  WHERE NOT has_tablespace_privilege(s.oid, 'CREATE')
  UNION ALL
  SELECT name, 'USAGE on server ' || s.srvname || ' is missing' FROM owned
  JOIN pg_foreign_table f ON class = 'pg_class'::regclass AND f.ftrelid = object
  JOIN pg_foreign_server s ON s.oid = f.ftserver
  WHERE NOT has_server_privilege(s.oid, 'USAGE')
  UNION ALL
  SELECT DISTINCT name, 'a privilege on it was granted by ' || pg_get_userbyid(a.grantor)
  FROM owned JOIN (
    SELECT 'pg_class'::regclass::oid AS of, oid, relacl AS acl FROM pg_class
    UNION ALL SELECT 'pg_class'::regclass, attrelid, attacl FROM pg_attribute
    UNION ALL SELECT 'pg_proc'::regclass, oid, proacl FROM pg_proc
    UNION ALL SELECT 'pg_type'::regclass, oid, typacl FROM pg_type
  ) AS given ON given.of = class AND given.oid = object, aclexplode(given.acl) AS a
  WHERE a.grantor <> owner
"""
_OTHER = """
  UNION ALL
  SELECT 'large object ' || oid, 'it belongs to ' || pg_get_userbyid(lomowner)
  FROM pg_largeobject_metadata
  WHERE NOT (pg_has_role(lomowner, '{set}') AND pg_has_role(lomowner, 'USAGE'))
  UNION ALL
  SELECT type || ' ' || identity, 'only a superuser can create it' FROM outside
  WHERE NOT stays AND type NOT IN ('publication', 'server', 'user mapping')
  UNION ALL
  SELECT DISTINCT 'publication ' || quote_ident(p.pubname),
    'it belongs to ' || pg_get_userbyid(p.pubowner)
  FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
  WHERE NOT pg_has_role(p.pubowner, 'USAGE')
"""
_TROUBLE = f"""
WITH role AS (
  SELECT rolsuper AS is_super FROM pg_roles WHERE rolname = current_user
),
owned AS (
  SELECT o.*, (identity).type || ' ' || (identity).identity AS name, n.nspname,
    pg_get_userbyid(owner) AS owner_name
  FROM ({OBJECTS}) AS o JOIN pg_namespace n ON n.oid = o.schema
),
outside AS ({OUTSIDE}),
trouble AS ({_OWNED}{_MADE_WITH}{_OTHER})
SELECT what, why FROM trouble, role WHERE NOT is_super
UNION ALL
SELECT 'subscription ' || quote_ident(subname),
  'a restore would cut it off from its publisher: drop it first, and create it again afterwards'
FROM pg_subscription s WHERE subdbid = (
  SELECT oid FROM pg_database WHERE datname = current_database())
ORDER BY 1, 2
"""


def require(connection: Connection) -> None:
    """Raise NotRestorable with what the connected role could not put back, and why."""
    privilege = "SET" if sessions.server_version(connection) >= 160000 else "MEMBER"
    query = _TROUBLE.replace("{set}", privilege)
    found = connection.exec_driver_sql(query.replace("%", "%%")).all()
    if not found:
        return
    role = connection.scalar(text("SELECT current_user"))
    lines = [f"{what}: {why}" for what, why in found]
    more = [f"and {len(lines) - MOST_SHOWN:,} more"] if len(lines) > MOST_SHOWN else []
    raise NotRestorable(
        f"The role {role} could not restore this database: "
        + "; ".join([*lines[:MOST_SHOWN], *more]),
        hint="Run backup and restore as a superuser, or as a role that owns these objects or is a"
        f' member of their owners (GRANT owner TO "{role}"). No backup was written.',
    )
