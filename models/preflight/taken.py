"""Names that are taken: what exists under a name of ours is checked for what it is."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, text

from models.engine.schema.declaration import Schema
from models.errors import Incompatible, NotAllowed
from models.ledger.tables import SCHEMA
from models.postgres.catalog import Table

# The ledger has had these from its first revision on.
_OF_A_LEDGER = {"alembic_version", "batches", "runs", "schema_objects"}
REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007")
KINDS = {
    "v": "a view",
    "m": "a materialized view",
    "f": "a foreign table",
    "p": "a partitioned table",
    "S": "a sequence",
    "i": "an index",
    "I": "an index",
    "c": "a type",
    "t": "another table",
    "b": "a type",
    "d": "a domain",
    "e": "an enum",
    "r": "a type",
}
_RELATIONS = text(
    "SELECT c.relname, c.relkind FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE n.nspname = :schema AND c.relkind NOT IN ('i', 'I')"
)
_TYPES = text(
    "SELECT t.typname, t.typtype FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace"
    " LEFT JOIN pg_class c ON c.oid = t.typrelid"
    " WHERE n.nspname = :schema AND t.typname = ANY(:names) AND coalesce(c.relkind, 'c') = 'c'"
)
_HOLDER = text("""
SELECT i.indexrelid IS NOT NULL AND i.indrelid = :table AND i.indpred IS NULL
    AND a.attname = :column AS fits, coalesce(i.indisvalid, false) AS is_valid
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_index i ON i.indexrelid = c.oid
LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
WHERE n.nspname = :schema AND c.relname = :name
""")


def require_own_schema(connection: Connection) -> None:
    """Raise Incompatible where the schema `migration` is not the ledger's, or a newer ledger's.

    And NotAllowed where the role may not use it.
    """
    allowed = connection.execute(
        text(
            "SELECT has_schema_privilege(oid, 'USAGE') AND has_schema_privilege(oid, 'CREATE')"
            " AS is_usable, pg_get_userbyid(nspowner) AS owner"
            " FROM pg_namespace WHERE nspname = :schema"
        ),
        {"schema": SCHEMA},
    ).one_or_none()
    if allowed is None:
        return
    names = {row.relname for row in connection.execute(_RELATIONS, {"schema": SCHEMA})}
    if names and not names >= _OF_A_LEDGER:
        raise Incompatible(
            f"The schema {SCHEMA} belongs to something else: it holds {min(names)}, and no ledger",
            hint="The ledger needs that name: rename the other schema, or use another database."
            " Nothing was changed.",
        )
    if not allowed.is_usable:
        raise NotAllowed(
            f"The role may not create in the schema {SCHEMA}, which belongs to {allowed.owner}",
            hint=f"GRANT USAGE, CREATE ON SCHEMA {SCHEMA}, or connect as {allowed.owner}."
            " Nothing was changed.",
        )
    if not names:
        return
    versions = connection.scalars(text(f"SELECT version_num FROM {SCHEMA}.alembic_version"))
    unknown = [version for version in versions if version not in REVISIONS]
    if unknown:
        raise Incompatible(
            f"The schema {SCHEMA} has the revision {unknown[0]}, which this version does not know",
            hint="Use the version that made the ledger, or a newer one; where the schema is not the"
            " ledger's, rename it. Nothing was changed.",
        )


def require_plain(
    connection: Connection, declared: Schema, schema: str, found: dict[str, Table]
) -> None:
    """Raise Incompatible where a target's or enum's name is that of something of another kind."""
    for name, table in found.items():
        if table.kind != "r":
            raise _taken(schema, name, KINDS.get(table.kind, "no table"), "a plain table")
    types = connection.execute(
        _TYPES, {"schema": schema, "names": [*declared.enums, *declared.tables]}
    )
    for row in types:
        if row.typname in declared.enums and row.typtype != "e":
            raise _taken(schema, row.typname, KINDS.get(row.typtype, "a type"), "an enum")
        if row.typname in declared.tables:
            raise _taken(schema, row.typname, KINDS.get(row.typtype, "a type"), "a table")
    relations = connection.execute(_RELATIONS, {"schema": schema})
    for row in relations:
        if row.relname in declared.enums and row.relkind != "S":
            raise _taken(schema, row.relname, "a table or view", "an enum")


def _taken(schema: str, name: str, found: str, expected: str) -> Incompatible:
    return Incompatible(
        f"{schema}.{name}: expected {expected}, found {found}",
        hint="Rename what is in the way. Nothing was changed.",
    )


def index_names(
    connection: Connection, schema: str, oid: int, name: str, column: str
) -> Iterator[tuple[str, bool]]:
    """Names for an index on the column that nothing else has, and whether it is there, invalid.

    Another table that was renamed keeps its indexes under their names.
    """
    for number in range(100):
        candidate = f"{name}_{number}" if number else name
        values = {"schema": schema, "name": candidate, "table": oid, "column": column}
        holder = connection.execute(_HOLDER, values).one_or_none()
        if holder is None:
            yield candidate, False
        elif holder.fits and not holder.is_valid:
            yield candidate, True
    raise Incompatible(
        f"{schema}.{name} and a hundred names like it are taken",
        hint="Rename some of these indexes.",
    )
