"""The target schema as found: what may be adopted, and how the missing part is added.

Expand (here) creates tables without foreign keys and without the indexes that only foreign keys
need; those come after the load (`indexes` and `constraints`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.schema import CreateIndex, CreateTable

from models.engine import keys
from models.engine.schema import additions
from models.engine.schema.declaration import RawType, Schema
from models.engine.schema.shape import Shape
from models.engine.source import Sources
from models.errors import Incompatible, MigrationError
from models.postgres.catalog import INTEGER_TYPES, TEXT_TYPES, Column, Table, quote
from models.postgres.database import lock_tables
from models.postgres.keys import key_family
from models.preflight import taken


@dataclass(frozen=True)
class Target:
    """The target tables that exist, by their declared name, and the sources by their plural."""

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


def of(schema: Schema, sources: Sources) -> Target:
    """The target tables as they were when the sources were read, in the schema of the first."""
    return Target(sources.first.schema, _found(schema, sources) | sources.by_plural)


def names(schema: Schema, shape: Shape) -> dict[str, str]:
    """The declared names of the target tables by their names here, quoted, without the schema."""
    return {quote(shape.target(name)): name for name in (*schema.tables, *schema.adopted)}


def _found(schema: Schema, sources: Sources) -> dict[str, Table]:
    declared = names(schema, sources.shape)
    return {declared[name]: table for name, table in sources.beside.items()}


# As JSON: a ledger of an older version may have no such column.
_KEPT_TYPES = sa.text("""
SELECT to_jsonb(r) -> 'relations' -> 'ids' FROM migration.runs r
WHERE to_jsonb(r) -> 'relations' ? 'ids' ORDER BY r.id DESC LIMIT 1
""")


def with_ids(connection: Connection, schema: Schema, sources: Sources) -> Sources:
    """The sources with the shape that knows which target tables have integer ids."""
    tables = _found(schema, sources).items()
    found = {name: table.columns["id"].base for name, table in tables if "id" in table.columns}
    integers = {name: kind for name, kind in found.items() if kind in ("integer", "bigint")}
    return sources.with_shape(
        replace(
            sources.shape,
            integer_ids=integers,
            first_types=integers | (_first_types(connection) if integers else {}),
            text_ids=frozenset(found.keys() - integers.keys()),
        )
    )


def _first_types(connection: Connection) -> dict[str, str]:
    """The types of integer ids as the ledger's runs have kept them, by target table."""
    if connection.scalar(sa.text("SELECT to_regclass('migration.runs')")) is None:
        return {}
    return dict(connection.scalar(_KEPT_TYPES) or {})


def examine(
    connection: Connection, schema: Schema, sources: Sources, target: Target
) -> Iterator[MigrationError]:
    """Every name, column, type and key of what exists already that does not fit."""
    for name in schema.adopted:
        if name not in target.tables:
            yield Incompatible(
                f"The table {target.schema}.{name} does not exist",
                hint="Create it, or declare it in the migration's schema.",
            )
    found_tables = {name: target.tables[name] for name in schema.tables if name in target.tables}
    try:
        taken.require_plain(connection, schema, target.schema, found_tables)
    except MigrationError as error:
        yield error
    yield from additions.examine(connection, sources.shape, found_tables, target.schema)
    yield from _check_enums(connection, schema, target.schema)
    for declared in schema.declare(sources).tables.values():
        found = target.tables.get(declared.name)
        if found is None:
            continue
        adopted = declared.name not in sources.by_plural
        if adopted and found.kind != "r":
            yield Incompatible(
                f"{found.label} is no plain table", hint="Rename it, or move it to another schema."
            )
            continue
        for column in declared.columns:
            existing = found.columns.get(column.name)
            if existing is not None:
                yield from _check_column(schema, sources, found, column, existing)
        if adopted:
            for column in additions.lacking(schema, declared, found):
                if not additions.can_be_added(schema, declared, column):
                    yield _differs(found, column.name, str(column.type), "no such column")
            yield from _check_insertable(schema, sources.shape, found, declared)


def missing(
    schema: Schema, target: Target, sources: Sources, *, of_there: bool = False
) -> list[str]:
    """Tables, columns and defaults that `expand` would add; only those of tables that are there,
    on demand: they need a lock on these.
    """
    found = [] if of_there else [name for name in schema.tables if name not in target.tables]
    for declared in schema.declare(sources).tables.values():
        there = target.tables.get(declared.name)
        if there is None:
            continue
        if declared.name in sources.by_plural:
            found += [each.name for each in declared.columns if each.name not in there.columns]
        else:
            found += [column.name for column in additions.lacking(schema, declared, there)]
            found += [column for column, _ in additions.unset(sources.shape, declared.name, there)]
    return found


def expand(connection: Connection, schema: Schema, sources: Sources) -> list[tuple[str, str, str]]:
    """Create what is missing, in the caller's transaction; returns (kind, table, name) of each.

    What is there must fit (`examine`). Safe to repeat. The tables that are there come last, in one
    statement each: their locks are held from there to the commit only, and adding columns with a
    constant default or none rewrites nothing.
    """
    target = of(schema, sources)
    metadata = schema.declare(sources)
    added: list[tuple[str, str, str]] = []
    enums = enums_there(connection, schema, target.schema)
    # The driver takes a lone percent sign for a parameter; what is compiled knows that.
    within = quote(target.schema).replace("%", "%%")
    statements: list[str] = []
    for name, labels in schema.enums.items():
        if name not in enums:
            literals = ", ".join(f"'{label}'" for label in labels).replace("%", "%%")
            statements.append(f"CREATE TYPE {within}.{name} AS ENUM ({literals})")
            added.append(("type", "", name))
    for name in schema.tables:
        if name not in target.tables:
            table = metadata.tables[f"{target.schema}.{name}"]
            statements.append(str(CreateTable(table).compile(dialect=connection.dialect)))
            # A vacuum in the middle of the load finds nothing to do, and keeps those waiting who
            # build indexes and keys. It may come when the run is over: see `constraints`.
            statements.append(f"ALTER TABLE {within}.{name} SET (autovacuum_enabled = false)")
            added.append(("table", name, name))
    if statements:
        connection.exec_driver_sql(";".join(statements))
    for name, column in schema.early_indexes:
        # On an adopted table it is built concurrently, in `models.engine.schema.indexes`.
        if name not in target.tables:
            table = metadata.tables[f"{target.schema}.{name}"]
            names = taken.index_names(connection, target.schema, 0, f"ix_{name}_{column}", column)
            free, _ = next(names)
            connection.execute(CreateIndex(sa.Index(free, table.c[column])))
            added.append(("index", name, free))
    completed = list(_complete(connection, schema, sources, target))
    lock_tables(connection, [found.sql for found, _, _ in completed])
    for found, clauses, made in completed:
        statement = f"ALTER TABLE {found.sql} {', '.join(clauses)}"
        connection.exec_driver_sql(statement.replace("%", "%%"))
        added += made
    return added


def _complete(
    connection: Connection, schema: Schema, sources: Sources, target: Target
) -> Iterator[tuple[Table, list[str], list[tuple[str, str, str]]]]:
    """Each table that lacks columns or defaults, the clauses that add them, and what these add."""
    for declared in schema.declare(sources).tables.values():
        name, found = declared.name, target.tables.get(declared.name)
        if found is None:
            continue
        if name in sources.by_plural:
            columns = [each for each in declared.columns if each.name not in found.columns]
            clauses = [
                f"ADD COLUMN {quote(each.name)} {each.type.compile(connection.dialect)}"
                for each in columns
            ]
            defaults = []
        else:
            columns = additions.lacking(schema, declared, found)
            clauses = [additions.clause(connection, schema, declared, each) for each in columns]
            defaults = additions.unset(sources.shape, name, found)
            clauses += [f"ALTER COLUMN {quote(c)} SET DEFAULT {value}" for c, value in defaults]
        if clauses:
            made = [("column", name, each.name) for each in columns]
            yield found, clauses, made + [("default", name, column) for column, _ in defaults]


def enums_there(connection: Connection, declared: Schema, schema: str) -> dict[str, list[str]]:
    """The labels of each declared enum that is there, by its name."""
    found = connection.execute(
        sa.text(
            "SELECT t.typname, ARRAY(SELECT e.enumlabel::text FROM pg_enum e"
            " WHERE e.enumtypid = t.oid)"
            " FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace"
            " WHERE n.nspname = :schema AND t.typname = ANY(:names) AND t.typtype = 'e'"
        ),
        {"schema": schema, "names": list(declared.enums)},
    )
    return {name: labels for name, labels in found}


def _check_enums(connection: Connection, declared: Schema, schema: str) -> Iterator[Incompatible]:
    there = enums_there(connection, declared, schema)
    for name, labels in declared.enums.items():
        found = there.get(name)
        absent = [label for label in labels if found is not None and label not in found]
        if found is not None and absent:
            yield Incompatible(
                f"The type {schema}.{name} lacks the label {absent[0]!r};"
                f" it has {', '.join(found)}",
                hint=f"ALTER TYPE {schema}.{name} ADD VALUE '{absent[0]}'",
            )


def _check_column(
    schema: Schema, sources: Sources, table: Table, wanted: sa.Column[Any], found: Column
) -> Iterator[Incompatible]:
    kind = wanted.type
    if found.is_always:
        yield Incompatible(
            f"{table.label}.{found.name}: expected a plain column, found one that takes no value"
            " (GENERATED ALWAYS)",
            hint=f"An identity column: ALTER TABLE {table.label} ALTER {quote(found.name)} SET"
            " GENERATED BY DEFAULT. Another one: ALTER ... DROP EXPRESSION.",
        )
    if isinstance(kind, RawType):
        right = key_family(found.base) == key_family(kind.sql.split("(")[0])
    elif isinstance(kind, pg.ENUM):
        labels = set(found.enum or ())
        room = max(map(len, kind.enums))
        is_text = found.base in TEXT_TYPES and (found.length is None or found.length >= room)
        right = is_text or labels.issuperset(kind.enums)
    elif isinstance(kind, sa.String):
        refers = wanted.name == "id" or wanted.name.endswith("_id")
        room = keys.ID_LENGTH if refers else 1
        right = found.base in TEXT_TYPES and (found.length is None or found.length >= room)
        # A foreign key to a source makes this column a key of its rows; null is written there.
        actor = schema.actor_columns.get(wanted.name)
        right = right or (actor is not None and found.base == sources[actor].key.base)
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
    if not found.deterministic and found.name not in schema.never_written:
        yield _differs(table, found.name, "a deterministic collation", "a nondeterministic one")
    if not right:
        expected = f"the type {kind.name}" if isinstance(kind, pg.ENUM) else str(kind).lower()
        yield _differs(table, found.name, expected, found.type)


def _check_insertable(
    schema: Schema, shape: Shape, table: Table, declared: sa.Table
) -> Iterator[Incompatible]:
    nulls = schema.written_as_null.get(declared.name, ())
    for column in table.columns.values():
        written = column.name in declared.columns and column.name not in schema.never_written
        filled = written or column.default is not None or column.generated
        is_actor = column.name in schema.actor_columns and table.key_on(column.name) is not None
        if (declared.name, column.name) in shape.defaults or declared.name in schema.never_filled:
            continue
        if column.not_null and not filled:
            yield additions.required(declared.name, table, column)
        elif column.not_null and (column.name in nulls or is_actor):
            yield _differs(table, column.name, "null allowed, for rows that have no value", "none")
    conflict_key = schema.conflict_keys.get(declared.name, ("id",))
    if not any(i.valid and i.unique and set(i.columns) == set(conflict_key) for i in table.indexes):
        columns = ", ".join(conflict_key)
        yield _differs(table, conflict_key[0], f"a primary key on ({columns})", "none")


def _differs(table: Table, column: str, expected: str, found: str) -> Incompatible:
    return Incompatible(
        f"{table.label}.{column}: expected {expected}, found {found}",
        hint="Change the column, or rename the table that is in the way.",
    )
