"""Live writes: what the application changes in the legacy tables while a run is open is noted.

Triggers write one row a change to `migration.changes`; `changes.py` takes them up. They stay where
a run failed or was cancelled, so that it can be continued, and go when one is complete.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

from models.dashboard.legacy import Legacy
from models.engine.step import Context, Counts, Scope, Step
from models.errors import Incompatible, Misconfigured
from models.postgres.catalog import INTEGER_TYPES, Table, quote
from models.postgres.database import LOCK_TIMEOUT_MS

# What a target row is made from. A change of anything else is of no concern.
_VALUES = {
    "user": ("email", "role"),
    "subscription": ("user_id", "gpt_id", "status", "is_active", "version", "preferences"),
    "project": ("user_id", "active_gpt_id", "is_template"),
}
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
FUNCTION = """
CREATE OR REPLACE FUNCTION migration.capture() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  owned CONSTANT boolean := TG_ARGV[0] <> 'user';
  before_owner text;
  after_owner text;
BEGIN
  IF TG_OP = 'TRUNCATE' THEN
    EXECUTE format(
      'INSERT INTO migration.changes (entity, legacy_key, owner_key, operation)'
      ' SELECT %L, t.id::text, t.%I::text, ''DELETE'' FROM %s t',
      TG_ARGV[0], CASE WHEN owned THEN 'user_id' ELSE 'id' END, TG_RELID::regclass);
    RETURN NULL;
  END IF;
  IF TG_OP <> 'INSERT' THEN
    IF owned THEN before_owner := OLD.user_id::text; ELSE before_owner := OLD.id::text; END IF;
    INSERT INTO migration.changes (entity, legacy_key, owner_key, operation)
    VALUES (TG_ARGV[0], OLD.id::text, before_owner, TG_OP);
  END IF;
  IF TG_OP <> 'DELETE' THEN
    IF owned THEN after_owner := NEW.user_id::text; ELSE after_owner := NEW.id::text; END IF;
    IF TG_OP = 'INSERT' OR NEW.id IS DISTINCT FROM OLD.id
        OR after_owner IS DISTINCT FROM before_owner THEN
      INSERT INTO migration.changes (entity, legacy_key, owner_key, operation)
      VALUES (TG_ARGV[0], NEW.id::text, after_owner, TG_OP);
    END IF;
    -- Another key for the same user: what is given to one is not given to the other once more.
    IF TG_OP = 'UPDATE' AND NOT owned AND after_owner IS DISTINCT FROM before_owner THEN
      INSERT INTO migration.changes (entity, legacy_key, owner_key, operation)
      VALUES ('user', before_owner, after_owner, 'RENAME');
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
    stage = "organization"
    queue = "migration.control"

    def items(self, context: Context) -> list[str]:
        return list(_VALUES)

    def apply(self, context: Context, scope: Scope) -> Counts:
        for entity in scope.keys or ():
            table = _table(context, entity)
            if not _has_triggers(context.connection, table):
                require_free_names(context.connection, context.legacy)
                _alter(context.connection, _create(entity, table))
        return {}


class Release(Step):
    """Takes the triggers away again, with what they noted since the last change was taken up."""

    name = "release"
    stage = "finish"
    queue = "migration.control"

    def items(self, context: Context) -> list[str]:
        return list(_VALUES)

    def apply(self, context: Context, scope: Scope) -> Counts:
        for entity in scope.keys or ():
            _alter(context.connection, _drop(_table(context, entity)))
        # The next run goes through all rows: it finds these changes by itself.
        statement = text("DELETE FROM migration.changes WHERE entity = ANY(:entities)")
        context.connection.execute(statement, {"entities": list(scope.keys or ())})
        return {}


def _alter(connection: Connection, statements: Sequence[str]) -> None:
    """In the batch's own transaction, which fails where the table's lock is not to be had soon."""
    limit = f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"
    connection.exec_driver_sql("; ".join([limit, *statements]))


def require_triggers(context: Context) -> None:
    """Raise Misconfigured where a trigger is gone or disabled: then nobody knows what changed."""
    for entity in _VALUES:
        table = _table(context, entity)
        if not _has_triggers(context.connection, table):
            raise Misconfigured(
                f"Somebody took a trigger of the migration from {table.label}, or disabled it",
                hint="Whatever was written since is found by: producer retry --wait",
            )


def _table(context: Context, entity: str) -> Table:
    table: Table = getattr(context.legacy, f"{entity}s")
    return table


def _has_triggers(connection: Connection, table: Table) -> bool:
    found = connection.scalar(
        text(
            "SELECT count(*) FROM pg_trigger WHERE tgrelid = :oid AND tgenabled <> 'D'"
            f" AND tgname = ANY(:names) AND {_IS_OURS}"
        ),
        {"oid": table.oid, "names": list(_TRIGGERS)},
    )
    return bool(found == len(_TRIGGERS))


def require_free_names(connection: Connection, legacy: Legacy) -> None:
    """Raise Incompatible where a trigger of somebody else has the name of one of ours."""
    for table in (legacy.users, legacy.subscriptions, legacy.projects):
        taken = connection.scalar(
            text(
                "SELECT min(tgname) FROM pg_trigger WHERE tgrelid = :oid"
                f" AND tgname = ANY(:names) AND NOT {_IS_OURS}"
            ),
            {"oid": table.oid, "names": list(_TRIGGERS)},
        )
        if taken:
            raise Incompatible(
                f"The trigger {taken} on {table.label} is not the migration's",
                hint="Rename it. Nothing was changed.",
            )


def _create(entity: str, table: Table) -> list[str]:
    changed = []
    for name in ("id", *_VALUES[entity]):
        column = table.columns.get(name)
        if column:
            # As text, byte for byte: json has no equality, and others take what differs for equal.
            cast = "" if column.base in _PLAINLY_EQUAL else '::text COLLATE "C"'
            old, new = (f"{row}.{quote(name)}{cast}" for row in ("OLD", "NEW"))
            changed.append(f"{old} IS DISTINCT FROM {new}")
    statements = _drop(table)
    for name, event in _TRIGGERS.items():
        condition = f"{_NOT_OURS} AND ({' OR '.join(changed)})" if "UPDATE" in event else _NOT_OURS
        each = "STATEMENT" if "TRUNCATE" in event else "ROW"
        statements.append(
            f"CREATE TRIGGER {name} {event} ON {table.sql} FOR EACH {each} WHEN ({condition})"
            f" EXECUTE FUNCTION migration.capture('{entity}')"
        )
    return statements


def _drop(table: Table) -> list[str]:
    return [f"DROP TRIGGER IF EXISTS {name} ON {table.sql}" for name in _TRIGGERS]
