"""The legacy tables as found: their names, key types and which optional columns exist."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection

from models.errors import Incompatible, MigrationError, Misconfigured
from models.postgres.catalog import (
    DEFAULT_COLLATION,
    TEXT_TYPES,
    Table,
    quote,
    quote_name,
    read_tables,
)
from models.postgres.keys import KEY_TYPES, key_family
from models.preflight import candidates
from models.settings import Settings

JSON_TYPES = {"json", "jsonb"} | TEXT_TYPES

# The columns that each must have, by the setting that names it.
_REQUIRED = {
    "users": ("id", "email"),
    "subscriptions": ("id", "user_id", "gpt_id"),
    "projects": ("id", "user_id", "active_gpt_id"),
}


@dataclass(frozen=True)
class Legacy:
    """The three legacy tables, checked: usable keys and every required column."""

    users: Table
    subscriptions: Table
    projects: Table


def read(connection: Connection, settings: Settings) -> Legacy:
    """Find and check the legacy tables.

    Raises the first of `examine`'s errors.
    """
    legacy, errors = examine(connection, settings)
    if errors:
        raise errors[0]
    assert legacy is not None
    return legacy


def examine(
    connection: Connection, settings: Settings
) -> tuple[Legacy | None, list[MigrationError]]:
    """The legacy tables, where all are there, and everything that the migration cannot work with.

    Misconfigured for a table that is not there, Incompatible for a table or a column.
    """
    names = dict(zip(_REQUIRED, settings.tables, strict=True))
    found = read_tables(connection, [quote_name(name) for name in names.values()])
    tables: dict[str, Table] = {}
    errors: list[MigrationError] = []
    for role, name in names.items():
        table = found.get(quote_name(name))
        if table is None:
            errors.append(
                Misconfigured(
                    f"The legacy table {name} does not exist",
                    hint=f"Set MIGRATION_{role.upper()}_TABLE to the name it has here."
                    f" {candidates.named(connection, _REQUIRED[role])}",
                )
            )
            continue
        errors += _check(connection, table, _REQUIRED[role])
        tables[role] = table
    if len(tables) < len(_REQUIRED):
        return None, errors
    legacy = Legacy(**tables)
    return legacy, [*errors, *_check_owners(legacy)]


def optional(table: Table, column: str, default: str, *, alias: str) -> str:
    """SQL for an optional column: the column itself, or `default` where it is missing."""
    return f"{alias}.{quote(column)}" if column in table.columns else default


# A column may take letters of either case for equal. The database's own collation never does, and
# is in conflict with no other one.
_EXACTLY = '::text COLLATE "default"'
# The texts that target rows are made of, of a user `u`, a subscription `s` and a project `p`.
EXACT = {
    "email": f"u.email{_EXACTLY}",
    "gpt_id": f"s.gpt_id{_EXACTLY}",
    "active_gpt": f"p.active_gpt_id{_EXACTLY}",
}


_USUAL = "'active', 'inactive', 'paused', 'user', 'student', 'teacher', 'admin'"


def exact(table: Table, column: str, default: str, *, alias: str = "s") -> str:
    """SQL for an optional column as text that compares byte for byte."""
    return optional(table, column, default, alias=alias) + _EXACTLY


def word(text: str) -> str:
    """SQL for a text trimmed and in small letters; binds :blanks.

    Latin letters alone: by Turkish rules a capital I has another small letter. A text of small
    letters is a word already, which most are: trimming costs ten times as much as to see that.
    """
    trimmed = f'lower(btrim({text}, :blanks) COLLATE "C") COLLATE "default"'
    return f"CASE WHEN {text} IN ({_USUAL}) THEN {text} ELSE {trimmed} END"


def owners_are_enforced(child: Table, users: Table) -> bool:
    """Whether a validated foreign key makes rows without an owner impossible."""
    key = child.key_on("user_id")
    return bool(
        key and key.valid and key.refers_to == users.oid and child.columns["user_id"].not_null
    )


def _check(
    connection: Connection, table: Table, required: tuple[str, ...]
) -> Iterator[MigrationError]:
    if table.kind != "r":
        kind = "partitioned" if table.kind == "p" else "no plain table"
        yield Incompatible(f"{table.label} is {kind}", hint="Only plain tables can be migrated.")
        return
    for column in required:
        if column not in table.columns:
            yield Incompatible(
                f"{table.label} has no column {column}",
                hint=f"It is required. {candidates.named(connection, required)}",
            )
    key = table.columns.get("id")
    if key and key.base not in KEY_TYPES:
        yield Incompatible(
            f"{table.label}.id: expected varchar, text, uuid, integer or bigint, found {key.type}",
            hint="Change the column's type.",
        )
    if key and (not key.not_null or not table.is_unique("id")):
        yield Incompatible(
            f"{table.label}.id must be unique and not null",
            hint=f"ALTER TABLE {table.label} ADD PRIMARY KEY (id), after mending its duplicates.",
        )
    for name in ("id", "user_id"):
        key_column = table.columns.get(name) if name in required else None
        if key_column and not key_column.deterministic:
            yield Incompatible(
                f"{table.label}.{name} has a nondeterministic collation, which takes different"
                " keys for equal",
                hint=f'ALTER TABLE {table.label} ALTER {name} TYPE {key_column.type} COLLATE "C"',
            )
    preferences = table.columns.get("preferences")
    if "gpt_id" in required and preferences and preferences.base not in JSON_TYPES:
        yield Incompatible(
            f"{table.label}.preferences: expected json, jsonb or text, found {preferences.type}",
            hint="Change the column's type.",
        )


def _check_owners(legacy: Legacy) -> Iterator[MigrationError]:
    owner = legacy.users.columns.get("id")
    for table in (legacy.subscriptions, legacy.projects):
        column = table.columns.get("user_id")
        if not owner or not column:
            continue
        if key_family(column.base) != key_family(owner.base):
            yield Incompatible(
                f"{table.label}.user_id is {column.type}, but {legacy.users.label}.id is"
                f" {owner.type}",
                hint="Give both columns the same type.",
            )
        if len({column.collation, owner.collation} - {0, DEFAULT_COLLATION}) > 1:
            yield Incompatible(
                f"{table.label}.user_id and {legacy.users.label}.id have different collations",
                hint="Give both columns the same collation.",
            )
        owners = [key for key in table.keys if "user_id" in key.columns]
        if owners and all(key.refers_to != legacy.users.oid for key in owners):
            yield Incompatible(
                f"{table.label}.user_id has a foreign key ({owners[0].name}) to another table than"
                f" {legacy.users.label}",
                hint="Set MIGRATION_USERS_TABLE to the table that it points at, or name the table"
                " of these users.",
            )
    gpt = legacy.projects.columns.get("active_gpt_id")
    if gpt is None:
        return
    label = f"{legacy.projects.label}.active_gpt_id"
    if gpt.base not in TEXT_TYPES - {"character"} or (gpt.length is not None and gpt.length < 36):
        yield Incompatible(
            f"{label}: expected varchar(36) or longer to hold a tool's id, found {gpt.type}",
            hint="Change the column's type.",
        )
    if gpt.generated:
        yield Incompatible(
            f"{label}: expected a plain column to hold a tool's id, found a generated one",
            hint="Make it a plain column: ALTER COLUMN active_gpt_id DROP EXPRESSION.",
        )
    for key in legacy.projects.keys:
        if "active_gpt_id" in key.columns:
            yield Incompatible(
                f"{label} has a foreign key ({key.name}), so it cannot hold a tool's id",
                hint="Drop that foreign key first.",
            )
