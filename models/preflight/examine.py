"""Everything that can be read and stands in the way of a run: privileges, tables, values.

`producer.checks.trial` tries what cannot be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection, text

from models.engine import current
from models.engine.schema import target
from models.engine.schema.target import Target
from models.engine.source import Sources
from models.errors import MigrationError, NotAllowed
from models.preflight import obstacles
from models.preflight.obstacles import LEGACY, PRIVILEGES, TARGET, Obstacle
from models.settings import Settings

_CREATE = text("""
SELECT 'CREATE on the database (for the schema migration)' AS what,
  has_database_privilege(current_database(), 'CREATE')
  OR to_regnamespace('migration') IS NOT NULL AS is_allowed,
  format('GRANT CREATE ON DATABASE %I TO %I', current_database(), current_user) AS hint
UNION ALL SELECT 'CREATE on schema ' || :schema,
  has_schema_privilege(CAST(:schema AS text), 'CREATE'),
  format('GRANT CREATE ON SCHEMA %I TO %I', CAST(:schema AS text), current_user)
""")

_UNCHANGED = "Nothing was changed."


@dataclass(frozen=True)
class Preflight:
    """The tables, where all legacy tables are there, and all that is in the way."""

    sources: Sources | None
    target: Target | None
    obstacles: list[Obstacle]
    # Whether the legacy tables have what every statement on them needs.
    is_sound: bool = False
    # Whether they have their keys at least, so that the target tables can be judged.
    has_keys: bool = False

    @property
    def fatal(self) -> list[Obstacle]:
        """Those for which a run is refused."""
        return [found for found in self.obstacles if found.is_fatal]


def examine(connection: Connection, settings: Settings, *, reads_values: bool = True) -> Preflight:
    """Every obstacle, the legacy tables' own first, then privileges, then the rest."""
    migration = current.migration()
    tables, errors = migration.examine(connection, settings)
    found = [_of(LEGACY, error) for error in errors]
    if errors and (advice := migration.advice(connection, settings)):
        found[0] = replace(found[0], hint=f"{advice} {found[0].hint}")
    if tables is None:
        return Preflight(None, None, found)
    schema = migration.schema
    there = target.of(schema, tables)
    rest = [*_create(connection, tables), *obstacles.find(connection, schema, tables, there)]
    has_keys = all(
        {each.source.key, each.source.parent_column} - {""} <= each.columns.keys()
        for each in tables.values()
    )
    if has_keys:
        wrong = [
            *target.examine(connection, schema, tables, there),
            *migration.examine_target(connection, tables, there),
        ]
        misfits = [_of(TARGET, error) for error in wrong]
        rest += misfits
        # Values are compared with the columns that fit only.
        if reads_values and not misfits and not errors:
            rest += migration.misfits(connection, tables, there, settings)
    rest.sort(key=lambda obstacle: obstacle.row != PRIVILEGES)
    if not errors:
        rest = _advised(rest, migration.advice(connection, settings) if misfits else "")
    return Preflight(tables, there, found + rest, is_sound=not errors, has_keys=has_keys)


def refuse(connection: Connection, fatal: Sequence[Obstacle]) -> None:
    """Raise an error that names the first obstacle and counts the others; nothing without one."""
    if not fatal:
        return
    first = fatal[0]
    message, named, hint = first.what, 1, first.hint
    if first.kind is NotAllowed:
        lacks = [obstacle.what for obstacle in fatal if obstacle.kind is NotAllowed]
        role = connection.scalar(text("SELECT current_user"))
        message, named = f"The role {role} lacks: {'; '.join(lacks)}", len(lacks)
        hint = "Grant them, or connect as the tables' owner."
    if len(fatal) > named:
        message += f"; and {len(fatal) - named} more, which producer check lists"
    if not hint.endswith(_UNCHANGED):
        hint = f"{hint.removesuffix('.')}. {_UNCHANGED}" if hint else _UNCHANGED
    raise first.kind(message, hint=hint)


def _advised(found: list[Obstacle], advice: str) -> list[Obstacle]:
    """The obstacles with the advice before the hint of the first one of the target tables."""
    first = next((each for each in found if each.row == TARGET and each.is_fatal), None)
    if not advice or first is None:
        return found
    return [replace(e, hint=f"{advice} {e.hint}") if e is first else e for e in found]


def _of(row: str, error: MigrationError) -> Obstacle:
    return Obstacle(row, error.message, error.hint, kind=type(error))


def _create(connection: Connection, tables: Sources) -> list[Obstacle]:
    rows = connection.execute(_CREATE, {"schema": tables.first.schema})
    return [
        Obstacle(PRIVILEGES, row.what, row.hint, kind=NotAllowed)
        for row in rows
        if not row.is_allowed
    ]
