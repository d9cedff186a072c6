"""The target schema as found: what may be adopted, and how the missing part is added.

Expand (here) creates tables without foreign keys and without the indexes that only foreign keys
need; those come after the load, in `models.engine.indexes` and `models.engine.constraints`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.schema import CreateIndex, CreateTable

from models.dashboard.legacy import Legacy
from models.dashboard.schema import EARLY_INDEXES, ENUMS, TABLES, declare
from models.engine import keys
from models.errors import Incompatible, MigrationError
from models.postgres.catalog import INTEGER_TYPES, TEXT_TYPES, Column, Table, quote, read_tables
from models.postgres.keys import key_family
from models.preflight import taken

# Columns that the migration leaves to their default, and those for which it may write a null.
_NEVER_WRITTEN = ("description", "module_id", "error_message", "expires_at")
_WRITTEN_AS_NULL = {"ai_tools": ("version",)}
_CONFLICT_KEYS: dict[str, tuple[str, ...]] = {"tool_assignments": ("tool_id", "user_id")}


@dataclass(frozen=True)
class Target:
    """The target tables that exist, by their declared name; `users` and `projects` among them."""

    schema: str
    tables: dict[str, Table]

    def table(self, name: str) -> Table:
        """The table of that declared name; raises Incompatible before `schema upgrade`."""
        try:
            return self.tables[name]
        except KeyError:
            raise Incompatible(
                f"The table {self.schema}.{name} does not exist",
                hint="Run: producer schema upgrade",
            ) from None


def read(connection: Connection, legacy: Legacy) -> Target:
    """The target tables as they stand, in the schema of the legacy users table."""
    schema = legacy.users.schema
    names = {f"{quote(schema)}.{quote(name)}": name for name in TABLES}
    found = read_tables(connection, list(names))
    tables = {names[qualified]: table for qualified, table in found.items()}
    return Target(schema, {**tables, "users": legacy.users, "projects": legacy.projects})


def declared_for(legacy: Legacy) -> sa.MetaData:
    """The declared schema with the key type of the legacy users."""
    return declare(legacy.users.schema, _RawType(legacy.users.columns["id"].type))


def check(connection: Connection, legacy: Legacy) -> Target:
    """Check all that exists already; raises Incompatible naming the first column that differs."""
    target = read(connection, legacy)
    for error in examine(connection, legacy, target):
        raise error
    return target


def examine(connection: Connection, legacy: Legacy, target: Target) -> Iterator[MigrationError]:
    """Every name, column, type and key of what exists already that does not fit."""
    found_tables = {name: target.tables[name] for name in TABLES if name in target.tables}
    try:
        taken.require_plain(connection, target.schema, found_tables)
    except MigrationError as error:
        yield error
    yield from _check_enums(connection, target.schema)
    for declared in declared_for(legacy).tables.values():
        found = target.tables.get(declared.name)
        if found is None:
            continue
        adopted = declared.name not in ("users", "projects")
        if adopted and found.kind != "r":
            yield Incompatible(
                f"{found.label} is no plain table", hint="Rename it, or move it to another schema."
            )
            continue
        for column in declared.columns:
            existing = found.columns.get(column.name)
            if existing is not None:
                yield from _check_column(found, column, existing, legacy.users.columns["id"])
            elif adopted:
                yield _differs(found, column.name, str(column.type), "no such column")
        if adopted:
            yield from _check_insertable(found, declared)


def missing(target: Target, legacy: Legacy, *, of_legacy: bool = False) -> list[str]:
    """Tables and columns that `expand` would add; only columns of legacy tables on demand."""
    found = [] if of_legacy else [name for name in TABLES if name not in target.tables]
    for declared in declared_for(legacy).tables.values():
        if declared.name in ("users", "projects"):
            there = target.tables[declared.name].columns
            found += [column.name for column in declared.columns if column.name not in there]
    return found


def expand(connection: Connection, legacy: Legacy) -> list[tuple[str, str, str]]:
    """Create what is missing, in the caller's transaction; returns (kind, table, name) of each.

    Safe to repeat. The legacy tables come last, in one statement each: their lock is held from
    there to the commit only, and adding columns without a default rewrites nothing.
    """
    target = check(connection, legacy)
    metadata = declared_for(legacy)
    added: list[tuple[str, str, str]] = []
    for name, labels in ENUMS.items():
        if _enum_labels(connection, target.schema, name) is None:
            literals = ", ".join(f"'{label}'" for label in labels)
            connection.exec_driver_sql(
                f"CREATE TYPE {quote(target.schema)}.{name} AS ENUM ({literals})"
            )
            added.append(("type", "", name))
    for name in TABLES:
        if name not in target.tables:
            table = metadata.tables[f"{target.schema}.{name}"]
            connection.execute(CreateTable(table))
            # A vacuum in the middle of the load finds nothing to do, and keeps those waiting who
            # build indexes and keys. It may come when the run is over: `models.engine.constraints`.
            connection.exec_driver_sql(
                f"ALTER TABLE {quote(target.schema)}.{name} SET (autovacuum_enabled = false)"
            )
            added.append(("table", name, name))
    for name, column in EARLY_INDEXES:
        # On an adopted table it is built concurrently, in `models.engine.indexes`.
        if name not in target.tables:
            table = metadata.tables[f"{target.schema}.{name}"]
            names = taken.index_names(connection, target.schema, 0, f"ix_{name}_{column}", column)
            free, _ = next(names)
            connection.execute(CreateIndex(sa.Index(free, table.c[column])))
            added.append(("index", name, free))
    for role in ("projects", "users"):
        found = target.tables[role]
        missing = [
            column
            for column in metadata.tables[f"{target.schema}.{role}"].columns
            if column.name not in found.columns
        ]
        if missing:
            clauses = ", ".join(
                f"ADD COLUMN {quote(column.name)} {column.type.compile(connection.dialect)}"
                for column in missing
            )
            connection.exec_driver_sql(f"ALTER TABLE {found.sql} {clauses}")
            added.extend(("column", role, column.name) for column in missing)
    return added


class _RawType(sa.types.UserDefinedType[Any]):
    """A column type given by its SQL text, as the catalog prints it."""

    cache_ok = True

    def __init__(self, sql: str) -> None:
        self.sql = sql

    def get_col_spec(self, **_: Any) -> str:
        return self.sql


def _enum_labels(connection: Connection, schema: str, name: str) -> list[str] | None:
    """The labels of an enum; None where there is no such type."""
    found: list[str] | None = connection.scalar(
        sa.text(
            "SELECT ARRAY(SELECT e.enumlabel::text FROM pg_enum e WHERE e.enumtypid = t.oid)"
            " FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace"
            " WHERE n.nspname = :schema AND t.typname = :name AND t.typtype = 'e'"
        ),
        {"schema": schema, "name": name},
    )
    return found


def _check_enums(connection: Connection, schema: str) -> Iterator[Incompatible]:
    for name, labels in ENUMS.items():
        found = _enum_labels(connection, schema, name)
        absent = [label for label in labels if found is not None and label not in found]
        if found is not None and absent:
            yield Incompatible(
                f"The type {schema}.{name} lacks the label {absent[0]!r};"
                f" it has {', '.join(found)}",
                hint=f"ALTER TYPE {schema}.{name} ADD VALUE '{absent[0]}'",
            )


def _check_column(
    table: Table, wanted: sa.Column[Any], found: Column, user_key: Column
) -> Iterator[Incompatible]:
    kind = wanted.type
    if found.generated:
        yield _differs(table, found.name, "a plain column", "a generated one")
    if isinstance(kind, _RawType):
        right = key_family(found.base) == key_family(user_key.base)
    elif isinstance(kind, pg.ENUM):
        labels = set(found.enum or ())
        room = max(map(len, kind.enums))
        is_text = found.base in TEXT_TYPES and (found.length is None or found.length >= room)
        right = is_text or labels.issuperset(kind.enums)
    elif isinstance(kind, sa.String):
        refers = wanted.name == "id" or wanted.name.endswith("_id")
        room = keys.ID_LENGTH if refers else 1
        right = found.base in TEXT_TYPES and (found.length is None or found.length >= room)
        # A foreign key to the users makes this column a user's key; null is written there.
        right = right or (wanted.name == "assigned_by" and found.base == user_key.base)
    elif isinstance(kind, sa.Float):
        right = found.base in {"double precision", "real", "numeric"} | INTEGER_TYPES
    elif isinstance(kind, sa.Numeric):
        right = found.base == "numeric" and (found.scale is None or found.scale >= 2)
    elif isinstance(kind, pg.JSONB):
        right = found.base in ("json", "jsonb")
    elif isinstance(kind, sa.DateTime):
        right = found.base.startswith("timestamp")
    else:
        right = found.base == "boolean"
    if not found.deterministic and found.name not in _NEVER_WRITTEN:
        yield _differs(table, found.name, "a deterministic collation", "a nondeterministic one")
    if not right:
        expected = f"the type {kind.name}" if isinstance(kind, pg.ENUM) else str(kind).lower()
        yield _differs(table, found.name, expected, found.type)


def _check_insertable(table: Table, declared: sa.Table) -> Iterator[Incompatible]:
    nulls = _WRITTEN_AS_NULL.get(declared.name, ())
    for column in table.columns.values():
        written = column.name in declared.columns and column.name not in _NEVER_WRITTEN
        filled = written or column.default is not None or column.generated
        points_at_user = column.name == "assigned_by" and table.key_on("assigned_by") is not None
        if column.not_null and (not filled or column.name in nulls or points_at_user):
            yield _differs(table, column.name, "null allowed, for rows that have no value", "none")
    conflict_key = _CONFLICT_KEYS.get(declared.name, ("id",))
    if not any(i.valid and i.unique and set(i.columns) == set(conflict_key) for i in table.indexes):
        columns = ", ".join(conflict_key)
        yield _differs(table, conflict_key[0], f"a primary key on ({columns})", "none")


def _differs(table: Table, column: str, expected: str, found: str) -> Incompatible:
    return Incompatible(
        f"{table.label}.{column}: expected {expected}, found {found}",
        hint="Change the column, or rename the table that is in the way.",
    )
