"""The legacy tables as found: their names, key types and which optional columns exist."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection

from models.catalog import (
    DEFAULT_COLLATION,
    INTEGER_TYPES,
    TEXT_TYPES,
    Table,
    quote,
    quote_name,
    read_tables,
)
from models.errors import Incompatible, Misconfigured
from models.settings import Settings

KEY_TYPES = INTEGER_TYPES | TEXT_TYPES | {"uuid"}
JSON_TYPES = {"json", "jsonb"} | TEXT_TYPES

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

    Raises Misconfigured for a table that is not there, and Incompatible naming the first column
    that the migration cannot work with.
    """
    wanted = {
        "users": (settings.users_table, "MIGRATION_USERS_TABLE"),
        "subscriptions": (settings.subscriptions_table, "MIGRATION_SUBSCRIPTIONS_TABLE"),
        "projects": (settings.projects_table, "MIGRATION_PROJECTS_TABLE"),
    }
    found = read_tables(connection, [quote_name(name) for name, _ in wanted.values()])
    tables: dict[str, Table] = {}
    for role, (name, variable) in wanted.items():
        table = found.get(quote_name(name))
        if table is None:
            raise Misconfigured(
                f"The legacy table {name} does not exist",
                hint=f"Set {variable} to the name it has here.",
            )
        _check(table, _REQUIRED[role])
        tables[role] = table
    legacy = Legacy(**tables)
    _check_owners(legacy)
    return legacy


def key_family(base_type: str) -> str:
    """Key types that compare with each other: `integer`, `text` or `uuid`."""
    if base_type in INTEGER_TYPES:
        return "integer"
    return "text" if base_type in TEXT_TYPES else base_type


def key_cast(base_type: str) -> str:
    """The type to cast a key's text to; a plain `character` would cut it to one letter."""
    return "bpchar" if base_type == "character" else base_type


def list_cast(base_type: str) -> str:
    """The type to cast listed keys to: an owner's key may be larger than any user's."""
    return "bigint" if base_type in INTEGER_TYPES else key_cast(base_type)


def key_from_text(text: str, base_type: str) -> str:
    """SQL for the key that a text expression names; null where it names none."""
    if key_family(base_type) == "text":
        return text
    if base_type == "uuid":
        shape = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
        return f"(CASE WHEN {text} ~ '^{shape}$' THEN {text}::uuid END)"
    # Nineteen digits may be more than a bigint holds.
    largest = "9223372036854775807"
    return (
        f"(CASE WHEN {text} ~ '^-?[0-9]{{1,19}}$' THEN CASE WHEN abs({text}::numeric) <= {largest}"
        f" THEN {text}::bigint END END)"
    )


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


def exact(table: Table, column: str, default: str, *, alias: str = "s") -> str:
    """SQL for an optional column as text that compares byte for byte."""
    return optional(table, column, default, alias=alias) + _EXACTLY


def word(text: str) -> str:
    """SQL for a text trimmed and in small letters; binds :blanks.

    Latin letters alone: by Turkish rules a capital I has another small letter.
    """
    return f'lower(btrim({text}, :blanks) COLLATE "C") COLLATE "default"'


def owners_are_enforced(child: Table, users: Table) -> bool:
    """Whether a validated foreign key makes rows without an owner impossible."""
    key = child.key_on("user_id")
    return bool(
        key and key.valid and key.refers_to == users.oid and child.columns["user_id"].not_null
    )


def _check(table: Table, required: tuple[str, ...]) -> None:
    if table.kind != "r":
        kind = "partitioned" if table.kind == "p" else "no plain table"
        raise Incompatible(f"{table.label} is {kind}", hint="Only plain tables can be migrated.")
    for column in required:
        if column not in table.columns:
            raise Incompatible(
                f"{table.label} has no column {column}",
                hint="It is required: check the table's name in the settings.",
            )
    key = table.columns["id"]
    if key.base not in KEY_TYPES:
        raise Incompatible(
            f"{table.label}.id: expected varchar, text, uuid, integer or bigint, found {key.type}"
        )
    if not key.not_null or not table.is_unique("id"):
        raise Incompatible(
            f"{table.label}.id must be unique and not null",
            hint=f"ALTER TABLE {table.label} ADD PRIMARY KEY (id), after mending its duplicates.",
        )
    for name in {"id", "user_id"}.intersection(required):
        if not table.columns[name].deterministic:
            raise Incompatible(
                f"{table.label}.{name} has a nondeterministic collation, which takes different"
                " keys for equal",
                hint=f"ALTER TABLE {table.label} ALTER {name} TYPE {table.columns[name].type}"
                ' COLLATE "C"',
            )
    preferences = table.columns.get("preferences")
    if "gpt_id" in required and preferences and preferences.base not in JSON_TYPES:
        raise Incompatible(
            f"{table.label}.preferences: expected json, jsonb or text, found {preferences.type}"
        )


def _check_owners(legacy: Legacy) -> None:
    owner = legacy.users.columns["id"]
    for table in (legacy.subscriptions, legacy.projects):
        column = table.columns["user_id"]
        if key_family(column.base) != key_family(owner.base):
            raise Incompatible(
                f"{table.label}.user_id is {column.type}, but {legacy.users.label}.id is"
                f" {owner.type}",
                hint="Give both columns the same type.",
            )
        if len({column.collation, owner.collation} - {0, DEFAULT_COLLATION}) > 1:
            raise Incompatible(
                f"{table.label}.user_id and {legacy.users.label}.id have different collations",
                hint="Give both columns the same collation.",
            )
    gpt = legacy.projects.columns["active_gpt_id"]
    if gpt.base not in TEXT_TYPES - {"character"} or (gpt.length is not None and gpt.length < 36):
        raise Incompatible(
            f"{legacy.projects.label}.active_gpt_id: expected varchar(36) or longer to hold a"
            f" tool's id, found {gpt.type}"
        )
    if legacy.projects.key_on("active_gpt_id"):
        raise Incompatible(
            f"{legacy.projects.label}.active_gpt_id has a foreign key, so it cannot hold a"
            " tool's id",
            hint="Drop that foreign key first.",
        )
