"""What verifications have in common: checks of columns, page sums, before-images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from sqlalchemy import text

from models.engine.source import SourceTable
from models.engine.step import Context, Scope, Step
from models.postgres.catalog import DEFAULT_COLLATION, TEXT_TYPES

_PLAIN_TEXT = TEXT_TYPES - {"character"}


class Check(NamedTuple):
    """One thing that may be wrong with a row, and the SQL condition under which it is.

    `expected` and `found` are SQL for the two values, and `key` is SQL for the target row's key,
    where it is not the one of its table (see `with_checks`).
    """

    kind: str
    table: str
    detail: str
    condition: str
    expected: str = "NULL"
    found: str = "NULL"
    key: str = ""


def statements_of(
    context: Context, step: Step, scope: Scope, *, is_optimistic: bool = False
) -> tuple[Any, list[str]]:
    """The page's counts (None for a step without), and the statements that find its differences.

    Row by row only where the sums do not show that every row is right. Optimistically, a document
    that cannot be parsed raises an error, and the transaction needs a rollback to a savepoint.
    """
    row = _read_account(context, step, replace(scope, is_optimistic=is_optimistic))
    statements = step.differences(context, scope)
    if not getattr(row, "matches", False):
        statements = [*statements, *step.details(context, scope)]
    return row, statements


def _read_account(context: Context, step: Step, scope: Scope) -> Any:
    statement = step.account(context, scope)
    parameters = context.parameters | scope.parameters
    return context.connection.execute(text(statement), parameters).one() if statement else None


def wrong_values(table: str, given: str, columns: dict[str, tuple[str, str]]) -> list[Check]:
    """Checks of columns where `given` holds: SQL for what is found, and for what is expected."""
    return [
        Check(
            "wrong_value",
            table,
            column,
            f"({given}) AND {found} IS DISTINCT FROM {expected}",
            expected,
            found,
        )
        for column, (found, expected) in columns.items()
    ]


def with_checks(statement: str, checks: Sequence[Check], keys: Mapping[str, str]) -> str:
    """Fill {differs}, true for a row with any fault, and {checks}, which names each of them.

    `keys` is SQL for the key of the target row, by table. Nearly all rows have no fault: only for
    the others are the conditions told apart, and the values read.
    """
    differs = "\n  OR ".join(f"({check.condition})" for check in checks)
    rows = ",\n  ".join(
        f"('{check.kind}', '{check.table}', nullif('{check.detail}', ''), {check.condition},"
        f" ({check.key or keys[check.table]})::text, ({check.expected})::text,"
        f" ({check.found})::text)"
        for check in checks
    )
    return (
        statement.replace("{differs}", differs)
        .replace("{checks}", rows)
        .replace(
            "{fault}", "found(kind, target_table, detail, differs, target_key, expected, found)"
        )
        .replace("{values}", "found.target_key, found.expected, found.found")
    )


def newest_images(
    context: Context, entity: str, table: SourceTable, scope: Scope, given: str = "true"
) -> str:
    """SQL for the page's newest before-images `i`, of those for which `given` holds.

    Columns `legacy_key` and `was`, at most one row a key; read as a range where keys sort as text.
    """
    theirs = images_of("i", table, scope)
    return (
        "(SELECT DISTINCT ON (i.legacy_key) i.legacy_key, i.was FROM migration.before_images i"
        f" WHERE i.entity = '{entity}' AND {theirs} AND {given}"
        " ORDER BY i.legacy_key DESC, i.run_id DESC)"
    )


def images_of(alias: str, table: SourceTable, scope: Scope) -> str:
    """SQL condition: the before-image under this alias is one of a row of the page."""
    key = table.key
    if scope.keys is not None or (key.base in _PLAIN_TEXT and key.collation == DEFAULT_COLLATION):
        return scope.condition(f"{alias}.legacy_key", "text")
    own = scope.of(table)
    return (
        f"{alias}.legacy_key IN (SELECT {table.key_of('t')}::text FROM {table.sql} t WHERE {own})"
    )


# One statement, so that what differs and what waits are of one snapshot: where another batch
# replays a change at this moment, either both its rows and its change are as before, or neither.
_STORE = """
WITH found (kind, entity, legacy_key, target_table, detail) AS MATERIALIZED ({statement}),
waiting (entity, legacy_key, target_table) AS ({waiting})
INSERT INTO migration.differences
  (run_id, stage, batch_id, kind, entity, legacy_key, target_table, detail)
SELECT :run_id, :stage, :batch_id, f.kind, f.entity, f.legacy_key, f.target_table, f.detail
FROM found f
WHERE NOT EXISTS (
  SELECT FROM waiting x WHERE x.entity = f.entity AND x.legacy_key = f.legacy_key
    AND x.target_table = f.target_table)
ON CONFLICT DO NOTHING
"""


def store(context: Context, stage: str, statements: Iterable[str], scope: Scope) -> int:
    """Store what the statements select and what no change explains; returns how many.

    The values that a statement may select beside are not stored (see `values`).
    """
    waiting = context.migration.waiting(context)
    parameters = context.parameters | {"stage": stage} | scope.parameters
    return sum(
        context.connection.execute(
            text(_STORE.format(statement=statement, waiting=waiting)), parameters
        ).rowcount
        for statement in statements
    )
