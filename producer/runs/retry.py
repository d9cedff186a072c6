"""Which rows a retry tries: those quarantined, those that differ or are lost, and their owners."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import text

from models.engine import current
from models.engine.checks.accounting import account
from models.engine.live.capture import Capture
from models.engine.retry import Keys
from models.engine.step import Context, Scope
from models.ledger import selection, sums
from models.ledger.tables import RECONCILIATION, VERIFICATION

_ANY_LOST = text(
    "SELECT EXISTS (SELECT FROM migration.differences d"
    " WHERE d.run_id = :run_id AND d.kind = 'unaccounted')"
)

# As if the application had changed them just now.
_NOTE = """
INSERT INTO migration.changes (entity, legacy_key, owner_key, operation)
SELECT '{entity}', {key}::text, {root}::text, 'UPDATE' FROM {table} t
WHERE {scope}
"""

# What has no source row is replayed with its parent, or not at all: then it stays and fails.
_FORGET = """
DELETE FROM migration.differences d
WHERE d.run_id = :run_id AND d.entity = '{entity}' AND d.legacy_key <> '*'
  AND ({has_parent} OR EXISTS (SELECT FROM {table} t WHERE {key} = {named}))
"""
_FORGET_COUNTS = """
UPDATE migration.batches b SET counts = b.counts
  || '{"differences": 0, "discrepancies": 0, "unaccounted": 0}'
WHERE b.run_id = :run_id AND b.stage IN ('verification', 'reconciliation')
  AND NOT EXISTS (SELECT FROM migration.differences d
    WHERE d.run_id = :run_id AND d.stage = b.stage AND d.legacy_key <> '*')
"""


def capture() -> Keys:
    """The triggers once more, on each of the source tables."""
    migration = current.migration()
    entities = [source.entity for source in migration.sources]
    return Keys(Capture.name, migration.first_stage, entities)


def read(context: Context, *, quarantined: bool = True) -> list[Keys]:
    """The keys that each step tries again, for the context's run; or those that differ only."""
    if context.connection.scalar(_ANY_LOST, {"run_id": context.run_id}):
        # Only the first of the lost rows are stored so far.
        account(context, stores_all=True)
    found = context.migration.retried(context, quarantined=quarantined)
    if not context.is_canary:
        return found
    # Other canaries have rows in the quarantine, too.
    return [_selected(context, each) for each in found]


def _selected(context: Context, found: Keys) -> Keys:
    entity = context.migration.step(found.step).entity
    keys = selection.among(context, entity, found.keys)
    return replace(found, keys=keys, suspects=found.suspects & set(keys))


def take_up_differences(context: Context) -> None:
    """Let the finish replay what differs, and verify it again, instead of failing the run.

    For a run that was complete: what the application changed after the capture ended may differ.
    """
    for found in read(context, quarantined=False):
        entity = context.migration.step(found.step).entity
        table = context.sources[entity]
        scope = Scope(keys=tuple(found.keys))
        note = _NOTE.format(
            entity=entity,
            key=table.key_of("t"),
            root=table.root_of("t"),
            table=table.sql,
            scope=scope.of(table),
        )
        context.connection.execute(text(note), scope.parameters)
    for entity, table in context.sources.items():
        named = context.sources.key_named(entity, "d.legacy_key")
        forget = _FORGET.format(
            entity=entity,
            table=table.sql,
            key=table.key_of("t"),
            named=named,
            has_parent=bool(table.source.parent),
        )
        context.connection.execute(text(forget), context.parameters)
    context.connection.execute(text(_FORGET_COUNTS), context.parameters)
    sums.forget(context.connection, context.run_id, (VERIFICATION, RECONCILIATION))
