"""Live writes: what the application changes in the source tables while a run is open is noted.

Triggers write one row a change to `migration.changes`, and `replay` brings those rows in line. They
stay where a run failed or was cancelled, so that it can be resumed, and go when one is complete.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import Connection, text

from models.engine.source import Sources, SourceTable
from models.engine.step import Context, Counts, Scope, Step
from models.errors import Incompatible, Misconfigured
from models.postgres.catalog import INTEGER_TYPES, Table, literal, quote
from models.postgres.database import LOCK_TIMEOUT_MS

_PLAINLY_EQUAL = INTEGER_TYPES | {"uuid", "boolean", "jsonb"}
_TRIGGERS = {
    "migration_capture_rows": "AFTER INSERT OR DELETE",
    "migration_capture_values": "AFTER UPDATE",
    "migration_capture_all": "BEFORE TRUNCATE",
}
# The migration's own writes are none of the application's.
_NOT_OURS = "current_setting('migration.worker', true) IS DISTINCT FROM 'on'"

_IS_OURS = (
    "EXISTS (SELECT FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace"
    " WHERE p.oid = tgfoid AND n.nspname = 'migration' AND p.proname = 'capture')"
)

# A trigger must never make the application's own write fail: whatever goes wrong in here is left
# to the verification. Runs as its owner, since the application knows nothing of the schema.
# Its arguments: entity, key column, and the column whose value a change is noted for (the key again
# where the source has no parent). A trigger that version 0.1 made has the entity alone.
FUNCTION = """
CREATE OR REPLACE FUNCTION migration.capture() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  key CONSTANT text := coalesce(TG_ARGV[1], 'id');
  root CONSTANT text := coalesce(
    TG_ARGV[2], CASE WHEN TG_ARGV[0] = 'user' THEN 'id' ELSE 'user_id' END);
  read CONSTANT text := format('SELECT ($1).%I::text, ($1).%I::text', key, root);
  before_key text;
  before_owner text;
  after_key text;
  after_owner text;
BEGIN
  IF TG_OP = 'TRUNCATE' THEN
    EXECUTE format(
      'INSERT INTO migration.changes (entity, legacy_key, owner_key, operation)'
      ' SELECT %L, t.%I::text, t.%I::text, ''DELETE'' FROM %s t',
      TG_ARGV[0], key, root, TG_RELID::regclass);
    RETURN NULL;
  END IF;
  IF TG_OP <> 'INSERT' THEN
    EXECUTE read INTO before_key, before_owner USING OLD;
    INSERT INTO migration.changes (entity, legacy_key, owner_key, operation)
    VALUES (TG_ARGV[0], before_key, before_owner, TG_OP);
  END IF;
  IF TG_OP <> 'DELETE' THEN
    EXECUTE read INTO after_key, after_owner USING NEW;
    IF TG_OP = 'INSERT' OR after_key IS DISTINCT FROM before_key
        OR after_owner IS DISTINCT FROM before_owner THEN
      INSERT INTO migration.changes (entity, legacy_key, owner_key, operation)
      VALUES (TG_ARGV[0], after_key, after_owner, TG_OP);
    END IF;
    -- Another key for the same row: what is granted to one is not granted to the other once more.
    IF TG_OP = 'UPDATE' AND root = key AND after_key IS DISTINCT FROM before_key THEN
      INSERT INTO migration.changes (entity, legacy_key, owner_key, operation)
      VALUES (TG_ARGV[0], before_key, after_key, 'RENAME');
    END IF;
  END IF;
  RETURN NULL;
EXCEPTION WHEN OTHERS THEN
  RETURN NULL;
END $$
"""


class Capture(Step):
    """Puts the triggers on the legacy tables, before the first of their rows is read."""

    name = "capture"
    queue = "migration.control"
    is_constant = True

    def items(self, context: Context) -> list[str]:
        return list(context.sources)

    def apply(self, context: Context, scope: Scope) -> Counts:
        for entity in scope.keys or ():
            table = context.sources[entity]
            if not table.nothing and _lacking(context.connection, [table]):
                require_free_names(context.connection, context.sources)
                _alter(context.connection, _create(table))
        return {}


class Release(Step):
    """Takes the triggers away again, with what they noted since the last change was replayed."""

    name = "release"
    stage = "finish"
    queue = "migration.control"
    is_constant = True

    def items(self, context: Context) -> list[str]:
        return list(context.sources)

    def apply(self, context: Context, scope: Scope) -> Counts:
        for entity in scope.keys or ():
            _alter(context.connection, _drop(context.sources[entity]))
        # The next run goes through all rows: it finds these changes by itself.
        statement = text("DELETE FROM migration.changes WHERE entity = ANY(:entities)")
        context.connection.execute(statement, {"entities": list(scope.keys or ())})
        return {}


def _alter(connection: Connection, statements: Sequence[str]) -> None:
    """In the batch's own transaction, which fails where it does not get the table's lock soon."""
    limit = f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"
    connection.exec_driver_sql("; ".join([limit, *statements]))


def require_triggers(context: Context) -> None:
    """Raise Misconfigured where a trigger is missing or disabled: changes were not captured."""
    for table in _lacking(context.connection, context.sources.values()):
        raise Misconfigured(
            f"Somebody took a trigger of the migration from {table.label}, or disabled it",
            hint="Migrate what was written since: producer retry --wait",
        )


def _lacking(connection: Connection, tables: Collection[Table]) -> list[Table]:
    """Those of the tables where a trigger is missing or disabled."""
    query = text(
        "SELECT tgrelid FROM pg_trigger WHERE tgrelid = ANY(:oids) AND tgenabled <> 'D'"
        f" AND tgname = ANY(:names) AND {_IS_OURS} GROUP BY tgrelid HAVING count(*) = :all"
    )
    oids, names = [table.oid for table in tables], list(_TRIGGERS)
    asked = {"oids": oids, "names": names, "all": len(names)}
    complete = set(connection.scalars(query, asked))
    return [table for table in tables if table.oid not in complete]


def require_free_names(connection: Connection, sources: Sources) -> None:
    """Raise Incompatible where a trigger of somebody else has the name of one of ours."""
    query = text(
        "SELECT tgname, tgrelid FROM pg_trigger WHERE tgrelid = ANY(:oids)"
        f" AND tgname = ANY(:names) AND NOT {_IS_OURS} ORDER BY tgrelid, tgname"
    )
    labels = {table.oid: table.label for table in sources.values()}
    for name, oid in connection.execute(query, {"oids": list(labels), "names": list(_TRIGGERS)}):
        raise Incompatible(
            f"The trigger {name} on {labels[oid]} is not the migration's",
            hint="Rename it. Nothing was changed.",
        )


def _create(table: SourceTable) -> list[str]:
    source, changed = table.source, []
    root = source.parent_column or source.key
    read = source.reads or table.columns
    for name in dict.fromkeys((source.key, root, *map(table.own, read))):
        column = table.columns.get(name)
        if column:
            # As text, byte for byte: json has no equality, and others take what differs for equal.
            cast = "" if column.base in _PLAINLY_EQUAL else '::text COLLATE "C"'
            old, new = (f"{row}.{quote(name)}{cast}" for row in ("OLD", "NEW"))
            changed.append(f"{old} IS DISTINCT FROM {new}")
    arguments = ", ".join(literal(each) for each in (source.entity, source.key, root))
    statements = _drop(table)
    for name, event in _TRIGGERS.items():
        condition = f"{_NOT_OURS} AND ({' OR '.join(changed)})" if "UPDATE" in event else _NOT_OURS
        each = "STATEMENT" if "TRUNCATE" in event else "ROW"
        statements.append(
            f"CREATE TRIGGER {name} {event} ON {table.sql} FOR EACH {each} WHEN ({condition})"
            f" EXECUTE FUNCTION migration.capture({arguments})"
        )
    return statements


def _drop(table: Table) -> list[str]:
    return [f"DROP TRIGGER IF EXISTS {name} ON {table.sql}" for name in _TRIGGERS]
