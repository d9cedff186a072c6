"""The pages of a check or a rollback, laid end to end: no key may lie between two of them.

What the pages say of the rows is the steps' matter; this only needs the ledger. Where a page is
missing, its rows were not checked, and each is a difference; or not undone, and each a conflict.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import text

from models.engine import current
from models.engine.step import Context, Scope
from models.ledger import selection
from models.ledger.tables import RECONCILIATION, VERIFICATION

MOST_KEYS = 1_000
# Pages are cut in key order, so each begins where the one before it ends. The first has no lower
# bound and the last no upper one; a split page is covered by its parts.
_GAPS = text(
    """
WITH pages AS (
  SELECT b.id, b.low, b.high, lag(b.high) OVER (ORDER BY b.id) AS before
  FROM migration.batches b
  WHERE b.run_id = :run_id AND b.stage = :stage AND b.step = :step AND b.window > 0
    AND b.key_list IS NULL AND b.state IN ('done', 'split')
)
SELECT p.before AS low, p.low AS high FROM pages p WHERE p.low IS DISTINCT FROM p.before
UNION ALL
SELECT (SELECT l.high FROM pages l ORDER BY l.id DESC LIMIT 1), NULL
WHERE NOT EXISTS (SELECT FROM pages e WHERE e.high IS NULL)
"""
)
# The pages of a canary are lists. What came since they were cut waits for its replay.
_UNLISTED = """
{key}::text NOT IN (
  SELECT unnest(b.key_list) FROM migration.batches b
  WHERE b.run_id = :run_id AND b.stage = :stage AND b.step = :step AND b.window > 0
    AND b.state IN ('done', 'split'))
AND NOT EXISTS (
  SELECT FROM migration.changes c WHERE c.entity = :entity AND c.legacy_key = {key}::text)
"""


_NOTE = """
INSERT INTO migration.differences
  (run_id, stage, batch_id, kind, entity, legacy_key, target_table)
SELECT :run_id, :stage, 0, 'unverified', :entity, {key}::text, :plural FROM {table} t
WHERE {gap} AND NOT EXISTS (
  SELECT FROM migration.differences d
  WHERE d.run_id = :run_id AND d.entity = :entity AND d.legacy_key = {key}::text)
ORDER BY {key} LIMIT :most
ON CONFLICT DO NOTHING
"""
# By the pages' own counts, for each table of which fewer rows were verified than there were when
# they were accounted for. No key says which. What was changed meanwhile is verified as it is
# replayed, so nothing can be said of a table then.
_SHORT = text(
    """
INSERT INTO migration.differences
  (run_id, stage, batch_id, kind, entity, legacy_key, target_table)
SELECT :run_id, 'verification', a.id, 'unverified', e.entity, '*', e.name
FROM migration.batches a
CROSS JOIN unnest(CAST(:entities AS text[]), CAST(:tables AS text[])) AS e(entity, name)
WHERE a.run_id = :run_id AND a.stage = 'verification' AND a.counts ? 'accounted'
  AND NOT a.counts -> 'accounted' -> e.name ? 'changes'
  AND (a.counts #>> ARRAY['accounted', e.name, 'total'])::bigint > (
    SELECT coalesce(sum((b.counts #>> ARRAY[e.name, 'total'])::bigint), 0)
    FROM migration.batches b
    WHERE b.run_id = :run_id AND b.stage = 'verification' AND b.window > 0)
  AND NOT EXISTS (
    SELECT FROM migration.differences d
    WHERE d.run_id = :run_id AND d.entity = e.entity AND d.kind = 'unverified')
ON CONFLICT DO NOTHING
"""
)


_NOTE_SKIPPED = """
INSERT INTO migration.conflicts (run_id, kind, table_name, row_key)
SELECT :run_id, 'skipped', :plural, {key}::text FROM {table} t
WHERE {gap} ORDER BY {key} LIMIT :most
ON CONFLICT DO NOTHING
"""


def note_gaps(context: Context, stage: str) -> None:
    """Store a difference (or a conflict) for each row that no page held, at most MOST_KEYS a gap.

    Call it when the stage closes; does nothing for a stage that neither checks nor undoes.
    """
    is_undo = stage in current.migration().undo_stages
    if not (is_undo or stage in (VERIFICATION, RECONCILIATION)):
        return
    for step in current.migration().steps_of(stage):
        table = None if step.takes_lists else step.table(context)
        if table is None:
            continue
        if context.is_canary:
            table = context.sources[step.entity]
        values: dict[str, Any] = {"run_id": context.run_id, "stage": stage, "step": step.name}
        entity = table.source.entity
        values |= {"entity": entity, "plural": table.source.plural, "most": MOST_KEYS}
        if context.is_canary:
            unlisted = _UNLISTED.format(key=table.key_of("t"))
            gaps = [(f"{selection.condition(context, table, 't')} AND {unlisted}", values)]
        else:
            pages = context.connection.execute(_GAPS, values).all()
            scopes = [Scope(low, high) for low, high in pages]
            gaps = [(scope.of(table), values | scope.parameters) for scope in scopes]
        statement = _NOTE_SKIPPED if is_undo else _NOTE
        for gap, parameters in gaps:
            note = text(statement.format(table=table.sql, key=table.key_of("t"), gap=gap))
            context.connection.execute(note, parameters)
    if stage == VERIFICATION:
        entities = context.migration.counted
        tables = [context.sources[entity].source.plural for entity in entities]
        context.connection.execute(
            _SHORT, {"run_id": context.run_id, "tables": tables, "entities": entities}
        )
