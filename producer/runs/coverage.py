"""The pages of a check or a rollback, laid end to end: no key may lie between two of them.

What the pages say of the rows is the steps' matter; this only needs the ledger. Where a page is
missing, its rows were not checked, and each is a difference; or not undone, and each a conflict.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import text

from models.engine.migration import steps_of, undo_stage_names
from models.engine.row_hash import ENTITIES
from models.engine.step import Context, Scope, Step
from models.ledger.tables import RECONCILIATION, VERIFICATION
from models.postgres.catalog import Table

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


_NOTE = """
INSERT INTO migration.differences
  (run_id, stage, batch_id, kind, entity, legacy_key, target_table)
SELECT :run_id, :stage, 0, 'unverified', :entity, t.id::text, :entity || 's' FROM {table} t
WHERE {gap} AND NOT EXISTS (
  SELECT FROM migration.differences d
  WHERE d.run_id = :run_id AND d.entity = :entity AND d.legacy_key = t.id::text)
ORDER BY t.id LIMIT :most
ON CONFLICT DO NOTHING
"""
# By the pages' own counts, for each table of which fewer rows were verified than there were when
# they were accounted for. No key says which. What was changed meanwhile is verified as it is
# replayed, so nothing can be said of a table then.
_SHORT = text(
    """
INSERT INTO migration.differences
  (run_id, stage, batch_id, kind, entity, legacy_key, target_table)
SELECT :run_id, 'verification', a.id, 'unverified', rtrim(e.name, 's'), '*', e.name
FROM migration.batches a CROSS JOIN unnest(CAST(:tables AS text[])) AS e(name)
WHERE a.run_id = :run_id AND a.stage = 'verification' AND a.counts ? 'accounted'
  AND NOT a.counts -> 'accounted' -> e.name ? 'changes'
  AND (a.counts #>> ARRAY['accounted', e.name, 'total'])::bigint > (
    SELECT coalesce(sum((b.counts #>> ARRAY[e.name, 'total'])::bigint), 0)
    FROM migration.batches b
    WHERE b.run_id = :run_id AND b.stage = 'verification' AND b.window > 0)
  AND NOT EXISTS (
    SELECT FROM migration.differences d
    WHERE d.run_id = :run_id AND d.entity = rtrim(e.name, 's') AND d.kind = 'unverified')
ON CONFLICT DO NOTHING
"""
)


_NOTE_SKIPPED = """
INSERT INTO migration.conflicts (run_id, kind, table_name, row_key)
SELECT :run_id, 'skipped', :entity || 's', t.id::text FROM {table} t
WHERE {gap} ORDER BY t.id LIMIT :most
ON CONFLICT DO NOTHING
"""


def note_gaps(context: Context, stage: str) -> None:
    """Store a difference (or a conflict) for each row that no page held, at most MOST_KEYS a gap.

    Call it when the stage closes; does nothing for a stage that neither checks nor undoes.
    """
    is_undo = stage in undo_stage_names()
    if not (is_undo or stage in (VERIFICATION, RECONCILIATION)):
        return
    for step in steps_of(stage):
        table = None if step.takes_lists else step.source(context)
        if table is None:
            continue
        values: dict[str, Any] = {"run_id": context.run_id, "stage": stage, "step": step.name}
        values |= {"entity": _entity(context, step, table), "most": MOST_KEYS}
        for low, high in context.connection.execute(_GAPS, values).all():
            gap = Scope(low, high)
            condition = gap.condition("t.id", table.columns["id"].base)
            statement = _NOTE_SKIPPED if is_undo else _NOTE
            note = text(statement.format(table=table.sql, gap=condition))
            context.connection.execute(note, values | gap.parameters)
    if stage == VERIFICATION:
        tables = [f"{entity}s" for entity in ENTITIES]
        context.connection.execute(_SHORT, {"run_id": context.run_id, "tables": tables})


def _entity(context: Context, step: Step, table: Table) -> str:
    """What the keys of the pages are of: a step may page through another table than its own."""
    tables = {getattr(context.legacy, f"{entity}s").oid: entity for entity in ENTITIES}
    return tables.get(table.oid, step.entity)
