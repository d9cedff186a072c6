"""Halving a batch that fails, down to the row, under savepoints of the batch's own transaction.

Bad rows are set aside one by one, in O(bad · log n) statements; what is too big runs in halves.
"""

from __future__ import annotations

from decimal import Decimal

from sqlalchemy import text

from models.database import as_ours
from models.errors import BadRow, MigrationError, TooBig
from models.steps.base import SET_ASIDE_AGAIN, Context, Counts, Scope, Step
from worker import verify


def apply(context: Context, step: Step, scope: Scope) -> Counts:
    """Apply a scope; where a row of it is bad or it is too big, halve it, down to that row."""
    try:
        with as_ours(), context.connection.begin_nested():
            return step.apply(context, scope)
    except (BadRow, TooBig) as error:
        if step.source(context) is None:
            raise
        keys = _keys(context, step, scope)
        if len(keys) > 1:
            middle = len(keys) // 2
            halves = (scope.only(keys[:middle]), scope.only(keys[middle:]))
            first, second = (apply(context, step, half) for half in halves)
            return add(first, second)
        # No key: the application deleted the row meanwhile.
        return _apply_one(context, step, scope.only(keys), error) if keys else {}


def check(context: Context, stage: str, step: Step, scope: Scope) -> Counts:
    """Verify a scope, in halves where it is too big for one statement's time."""
    try:
        with as_ours(), context.connection.begin_nested():
            return verify.check(context, stage, step, scope)
    except TooBig:
        keys = _keys(context, step, scope)
        if len(keys) <= 1:
            raise
        middle = len(keys) // 2
        halves = (scope.only(keys[:middle]), scope.only(keys[middle:]))
        first, second = (check(context, stage, step, half) for half in halves)
        return add(first, second)


def _apply_one(context: Context, step: Step, scope: Scope, error: MigrationError) -> Counts:
    """One legacy row that fails: alone it may pass, and then one of its dependents is bad."""
    parts = _part_keys(context, step, scope)
    if parts:
        try:
            with as_ours(), context.connection.begin_nested():
                counts = step.apply(context, scope.with_parts([]))
            return add(counts, _apply_parts(context, step, scope, parts))
        except (BadRow, TooBig) as alone:
            error = alone
    _set_aside(context, step.entity, list(scope.keys or ()), "rejected", error)
    counts = {f"{step.entity}s": {"total": 1, "quarantined": 1}}
    if parts:
        _set_aside(context, step.part_entity, parts, "owner_quarantined", error)
        counts[f"{step.part_entity}s"] = {"total": len(parts), "quarantined": len(parts)}
    return counts


def _apply_parts(context: Context, step: Step, scope: Scope, parts: list[str]) -> Counts:
    """The dependents of one row, halved down to the one that fails. The row itself has passed."""
    try:
        with as_ours(), context.connection.begin_nested():
            counts = step.apply(context, scope.with_parts(parts))
            return {name: value for name, value in counts.items() if name != f"{step.entity}s"}
    except (BadRow, TooBig) as error:
        if len(parts) > 1:
            middle = len(parts) // 2
            halves = (parts[:middle], parts[middle:])
            first, second = (_apply_parts(context, step, scope, half) for half in halves)
            return add(first, second)
        _set_aside(context, step.part_entity, parts, "rejected", error)
        return {f"{step.part_entity}s": {"total": 1, "quarantined": 1}}


def _keys(context: Context, step: Step, scope: Scope) -> list[str]:
    table = step.source(context)
    if table is None:
        return list(scope.keys or ())
    condition = scope.condition("t.id", table.columns["id"].base)
    statement = text(f"SELECT t.id::text FROM {table.sql} t WHERE {condition} ORDER BY t.id")
    return list(context.connection.scalars(statement, scope.parameters))


def _part_keys(context: Context, step: Step, scope: Scope) -> list[str]:
    table = step.dependents(context)
    if table is None:
        return []
    # Cast to the owners' own type: the column may be a smaller integer.
    condition = scope.condition("t.user_id", context.legacy.users.columns["id"].base)
    statement = text(f"SELECT t.id::text FROM {table.sql} t WHERE {condition} ORDER BY t.id")
    return list(context.connection.scalars(statement, scope.parameters))


_SET_ASIDE = text(
    "INSERT INTO migration.quarantine AS q"
    " (entity, legacy_key, run_id, batch_id, reason, message)"
    " SELECT :entity, key, :run_id, :batch_id, :reason, :message"
    f" FROM unnest(CAST(:keys AS text[])) AS key {SET_ASIDE_AGAIN}"
)


def _set_aside(
    context: Context, entity: str, keys: list[str], reason: str, error: MigrationError
) -> None:
    """Quarantine rows that the database refuses; its own words stay out, they may quote data."""
    message = f"The database refuses the row: {error.message}"
    context.connection.execute(
        _SET_ASIDE,
        {
            "entity": entity,
            "keys": keys,
            "run_id": context.run_id,
            "batch_id": context.batch_id,
            "reason": reason,
            "message": "The owner is set aside." if reason == "owner_quarantined" else message,
        },
    )


def add(first: Counts, second: Counts) -> Counts:
    """The sum of two counts, name by name, nested ones too; amounts of money are strings."""
    total = dict(first)
    for name, value in second.items():
        present = total.get(name)
        if present is None:
            total[name] = value
        elif isinstance(value, dict):
            total[name] = add(present, value)
        elif isinstance(value, str):
            total[name] = str(Decimal(present) + Decimal(value))
        else:
            total[name] = present + value
    return total
