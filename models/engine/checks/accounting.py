"""Every legacy row is migrated or in the quarantine: counted over whole tables, each in a snapshot.

Nothing is replayed meanwhile and what is captured is told apart, so that each table is counted as
of the last replay, whenever its batch is: the tables' figures are those of one moment.

Knows nothing of batches: a page that was never cut is missing in no batch, but its rows are here.
The same statement counts before the cutover, for the verification, and after it, for the totals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import text

from models.engine.checks import judgement
from models.engine.checks.verification import store
from models.engine.step import Context, Counts, Scope, Step
from models.ledger import selection
from models.ledger.tables import VERIFICATION

# Of each table: enough to see what they have in common. A retry stores them all.
MOST_KEYS = 1_000
# Whole tables are joined once: hashing them is cheaper than to look up each row.
_PLANNING = """
SET LOCAL statement_timeout = '25min'; SET LOCAL work_mem = '64MB';
SET LOCAL enable_seqscan = on; SET LOCAL random_page_cost = 4;
SET LOCAL max_parallel_workers_per_gather = 2
"""

# `since`: what was captured and waits to be replayed, by key the first change. Whatever is counted
# is counted as of the last replay: a row inserted since is not there yet, a deleted one still is.
_ACCOUNT = """
WITH since AS MATERIALIZED (
  SELECT DISTINCT ON (c.entity, c.legacy_key) c.entity, c.legacy_key, c.operation
  FROM migration.changes c WHERE c.operation <> 'RENAME' AND {selected_changes}
  ORDER BY c.entity, c.legacy_key, c.id
),
moved AS MATERIALIZED (
  SELECT DISTINCT c.entity, c.owner_key FROM migration.changes c
),
quarantined_rows AS MATERIALIZED (
  SELECT q.entity, q.legacy_key FROM migration.quarantine q
  WHERE q.state IN ('open', 'accepted')
),
named AS MATERIALIZED (
  SELECT d.entity, d.legacy_key,
    bool_or(d.kind IN ('missing', 'unaccounted')) AS is_missing
  FROM migration.differences d
  WHERE d.run_id = :run_id AND d.stage = 'verification' AND d.kind <> 'unverified' GROUP BY 1, 2
)
"""
_COUNT = """
SELECT '{entity}' AS entity, here.total + gone.total AS total,
  here.migrated + gone.migrated AS migrated, here.quarantined + gone.quarantined AS quarantined,
  here.lost, here.lost_keys, (SELECT count(*) FROM since) AS changes
FROM (
  SELECT count(*) FILTER (WHERE NOT r.is_new) AS total,
    count(*) FILTER (WHERE NOT r.is_new AND r.is_migrated AND r.is_missing IS NOT TRUE)
      AS migrated,
    count(*) FILTER (WHERE NOT r.is_new AND r.in_quarantine) AS quarantined,
    count(*) FILTER (WHERE r.is_lost) AS lost,
    (array_agg(r.legacy_key) FILTER (WHERE r.is_lost))[1:{most}] AS lost_keys
  FROM (
    SELECT r.*, NOT (r.in_quarantine OR r.is_migrated OR r.is_pending OR r.is_named) AS is_lost
    FROM ({rows}) AS r
  ) AS r
) AS here,
(
  SELECT count(*) AS total, count(*) FILTER (WHERE a.legacy_key IS NULL) AS migrated,
    count(a.legacy_key) AS quarantined
  FROM since s LEFT JOIN quarantined_rows a ON a.entity = s.entity AND a.legacy_key = s.legacy_key
  WHERE s.entity = '{entity}' AND s.operation <> 'INSERT'
    AND NOT EXISTS (SELECT FROM {table} t WHERE {key}::text COLLATE "C" = s.legacy_key)
) AS gone
"""
# Tried first, while nothing was replayed since the pages of the verification: those have compared
# each row that they counted, and found no difference. So it is enough that they counted as many
# rows as the table has, and as many quarantined ones as the quarantine; no row is read twice.
_BY_PAGES = """
SELECT '{entity}' AS entity, here.total, here.total - pages.quarantined AS migrated,
  pages.quarantined
FROM (SELECT count(*) AS total FROM {table} t) AS here,
(SELECT count(*) AS total FROM quarantined_rows a WHERE a.entity = '{entity}') AS set_aside,
(
  SELECT sum((b.counts #>> ARRAY['{plural}', 'total'])::bigint)::bigint AS total,
    sum((b.counts #>> ARRAY['{plural}', 'quarantined'])::bigint)::bigint AS quarantined
  FROM migration.batches b
  WHERE b.run_id = :run_id AND b.stage = 'verification' AND b.window > 0 AND b.state = 'done'
) AS pages
WHERE here.total = pages.total AND set_aside.total = pages.quarantined
  AND NOT EXISTS (SELECT FROM migration.changes)
  AND NOT EXISTS (
    SELECT FROM migration.differences d WHERE d.run_id = :run_id AND d.stage = 'verification')
"""
# Then, where nothing waits to be replayed: if this adds up, there is no row to name.
_GLANCE = """
SELECT '{entity}' AS entity, count(*) AS total,
  count(*) FILTER (WHERE a.legacy_key IS NULL AND {is_migrated}) AS migrated,
  count(a.legacy_key) AS quarantined
FROM {table} t
{joins}
LEFT JOIN quarantined_rows a ON a.entity = '{entity}' AND a.legacy_key = {key}::text COLLATE "C"
WHERE {selected} AND NOT EXISTS (SELECT FROM migration.changes) AND NOT EXISTS (SELECT FROM named)
"""
_ROWS = """
SELECT {key}::text AS legacy_key, s.operation IS NOT DISTINCT FROM 'INSERT' AS is_new,
  a.legacy_key IS NOT NULL AS in_quarantine, a.legacy_key IS NULL AND {is_migrated} AS is_migrated,
  s.legacy_key IS NOT NULL OR w.owner_key IS NOT NULL AS is_pending,
  n.legacy_key IS NOT NULL AS is_named, n.is_missing
FROM {table} t
{joins}
LEFT JOIN quarantined_rows a ON a.entity = '{entity}' AND a.legacy_key = {key}::text COLLATE "C"
LEFT JOIN since s ON s.entity = '{entity}' AND s.legacy_key = {key}::text COLLATE "C"
LEFT JOIN moved w ON w.entity = '{root}' AND w.owner_key = {owner}::text COLLATE "C"
LEFT JOIN named n ON n.entity = '{entity}' AND n.legacy_key = {key}::text COLLATE "C"
WHERE {selected}
"""

_STORE = text(
    "INSERT INTO migration.differences"
    " (run_id, stage, batch_id, kind, entity, legacy_key, target_table)"
    " SELECT :run_id, :stage, :batch_id, 'unaccounted', :entity, key, :table"
    " FROM unnest(CAST(:keys AS text[])) AS key ON CONFLICT DO NOTHING"
)


class Accounting(Step):
    """Ends the verification: accounts for each legacy row, and judges each that was quarantined."""

    name = "accounting"
    stage = VERIFICATION
    queue = "migration.verify"

    def items(self, context: Context) -> list[str]:
        return [*context.migration.counted, "quarantine"]

    def apply(self, context: Context, scope: Scope) -> Counts:
        if scope.keys == ("quarantine",):
            found = judgement.judge(context)
            strays = store(context, VERIFICATION, context.migration.whole(context), scope)
            return {"quarantine": found, "differences": found["wrong"] + strays}
        by_pages = context.migration.pages_account and not context.is_canary
        counted, lost = account(context, scope.keys or (), by_pages=by_pages)
        return {"accounted": counted, "unaccounted": lost, "differences": lost}


def account(
    context: Context,
    entities: Sequence[str] = (),
    *,
    stores_all: bool = False,
    by_pages: bool = False,
) -> tuple[Counts, int]:
    """How the rows of these sources stand (of all, for none), and how many are lost.

    A lost row is neither migrated nor quarantined.
    Those are stored as differences, at most MOST_KEYS of a table where not all are asked for.
    `by_pages` lets the pages of the verification, all of them just done, tell what is migrated.
    """
    counted: Counts = {}
    lost = 0
    entities = entities or context.migration.counted
    for row in _read(context, entities, None if stores_all else MOST_KEYS, by_pages=by_pages):
        counted[context.sources[row.entity].source.plural] = {
            name: getattr(row, name) for name in ("total", "migrated", "quarantined")
        } | ({"changes": row.changes} if getattr(row, "changes", 0) else {})
        lost += getattr(row, "lost", 0)
        _store(context, row.entity, getattr(row, "lost_keys", None) or [])
    return counted, lost


def _read(
    context: Context, entities: Sequence[str], most: int | None, *, by_pages: bool
) -> list[Any]:
    # Undone for the sake of its settings.
    with context.connection.begin_nested() as nested:
        context.connection.exec_driver_sql(_PLANNING)
        rows = _execute(context, entities, _BY_PAGES) if by_pages else []
        if len(rows) < len(entities):
            rows = _execute(context, entities, _GLANCE)
        if any(row.total != row.migrated + row.quarantined for row in rows) or not any(
            row.total for row in rows
        ):
            rows = _execute(context, entities, _COUNT, most)
        nested.rollback()
    return rows


def _execute(
    context: Context, entities: Sequence[str], statement: str, most: int | None = None
) -> list[Any]:
    """One statement over these tables, and so in one snapshot."""
    parts = " UNION ALL ".join(_fill(context, statement, entity, most) for entity in entities)
    account = _ACCOUNT.format(selected_changes=selection.of_change(context))
    return list(context.connection.execute(text(account + parts), context.parameters))


def _fill(context: Context, statement: str, entity: str, most: int | None) -> str:
    table = context.sources[entity]
    proof = context.migration.proof(context, entity)
    names = {
        "entity": entity,
        "plural": table.source.plural,
        "table": table.sql,
        "key": table.key_of("t"),
        "root": table.source.parent or entity,
        "owner": table.root_of("t"),
        "joins": proof.joins,
        "selected": selection.condition(context, table, "t"),
        "is_migrated": proof.is_migrated,
    }
    rows = _ROWS.format(**names)
    return statement.format(**names, rows=rows, most="" if most is None else most)


def _store(context: Context, entity: str, keys: list[str]) -> None:
    table = context.sources[entity]
    values = {"entity": entity, "keys": keys, "table": table.source.plural}
    where = {"run_id": context.run_id, "stage": VERIFICATION, "batch_id": context.batch_id}
    context.connection.execute(_STORE, where | values)


# Where nothing was replayed or closed since, the rows are as they were before the cutover.
_AS_BEFORE = text(
    """
SELECT jsonb_object_agg(e.key, e.value)
FROM migration.batches a CROSS JOIN jsonb_each(a.counts -> 'accounted') AS e
WHERE a.run_id = :run_id AND a.stage = 'verification'
  AND NOT EXISTS (
    SELECT FROM migration.batches b WHERE b.run_id = :run_id AND b.stage = 'finish'
      AND ((b.counts ->> 'replayed')::int > 0 OR (b.counts ->> 'removed')::int > 0))
HAVING count(DISTINCT e.key) = :tables AND NOT bool_or(e.value ? 'changes')
"""
)


class Totals(Step):
    """Accounts for the source rows once more at the end, while the triggers are still there."""

    name = "totals"
    stage = "finish"
    queue = "migration.control"

    def items(self, context: Context) -> list[str]:
        return ["totals"]

    def apply(self, context: Context, scope: Scope) -> Counts:
        as_before = context.connection.scalar(
            _AS_BEFORE, {"run_id": context.run_id, "tables": len(context.migration.counted)}
        )
        if as_before is not None:
            return {"final": as_before}
        counted, lost = account(context)
        return {"final": counted, "unaccounted": lost, "differences": lost}
