"""The quarantine judged again: is each row that was quarantined by a rule bad by that rule?

The migration says the rule a second time (`Migration.rule`), in words that no worker uses. Not
judged are rows that the database refused, rows that an operator accepted, and rows that changed
since: they wait for a retry. The entry of a row that no longer exists is closed.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import text

from models.engine.step import Context, Counts, Scope, Step
from models.ledger.quarantine import REFUSED
from models.ledger.tables import VERIFICATION

CHUNK_KEYS = 50_000

# Good rows: no rule says that they are bad, their owner is not quarantined either, and no change of
# theirs waits to be replayed. A row without a hash was quarantined by hand or by an older version.
_GOOD = """
SELECT q.legacy_key, coalesce(q.row_hash = {row_hash}, true) AS is_as_judged
FROM (
  SELECT i.legacy_key, i.row_hash FROM migration.quarantine i
  WHERE i.entity = '{entity}' AND i.state = 'open' AND i.reason NOT IN ({refused}) AND {which}
) AS q
CROSS JOIN LATERAL (SELECT {key} AS id OFFSET 0) AS k
JOIN {rows} ON {row_key} = k.id
WHERE ({reason}) IS NULL AND NOT EXISTS (
  SELECT FROM migration.quarantine o WHERE o.entity = '{root}' AND '{entity}' <> '{root}'
    AND o.legacy_key = {owner}::text AND o.state IN ('open', 'accepted'))
AND NOT EXISTS (
  SELECT FROM migration.changes c WHERE c.entity = '{entity}' AND c.legacy_key = q.legacy_key)
AND NOT EXISTS (
  SELECT FROM migration.changes c WHERE c.entity = '{root}' AND c.owner_key = {owner}::text)
"""

_JUDGE = """
WITH good AS MATERIALIZED ({good}),
stored AS (
  INSERT INTO migration.differences
    (run_id, stage, batch_id, kind, entity, legacy_key, target_table)
  SELECT :run_id, '{stage}', :batch_id, 'wrongly_quarantined', '{entity}', g.legacy_key,
    'quarantine'
  FROM good g WHERE g.is_as_judged
  ON CONFLICT DO NOTHING
  RETURNING 1
)
SELECT (SELECT count(*) FROM stored) AS wrong, count(*) FILTER (WHERE NOT is_as_judged) AS waiting
FROM good
"""
_DIFFERENCES = """
SELECT 'wrongly_quarantined', '{entity}', g.legacy_key, 'quarantine', NULL::text
FROM ({good}) AS g WHERE g.is_as_judged
"""

_NEXT = """
SELECT max(legacy_key) FROM (
  SELECT q.legacy_key FROM migration.quarantine q
  WHERE q.entity = :entity AND q.state IN ('open', 'accepted')
    AND (CAST(:after AS text) IS NULL OR q.legacy_key > :after)
  ORDER BY q.legacy_key LIMIT :most) AS chunk
"""
_REFUSED = """
SELECT q.reason, count(*) FROM migration.quarantine q
WHERE q.state = 'open' AND q.reason = ANY(:refused) GROUP BY q.reason
"""


def judge(context: Context) -> Counts:
    """Judge all that stands in the quarantine, chunk by chunk, and store what is wrong.

    Counts `wrong` and `waiting` rows, and by reason those that were `refused` and are not judged.
    """
    wrong = waiting = 0
    for entity in context.sources:
        after: str | None = None
        while (last := _next(context, entity, after)) is not None:
            which = "i.legacy_key <= :last" + (" AND i.legacy_key > :after" if after else "")
            row = _execute(
                context,
                _JUDGE.format(
                    good=_good(context, entity, which), entity=entity, stage=VERIFICATION
                ),
                {"after": after, "last": last},
            ).one()
            wrong, waiting, after = wrong + row.wrong, waiting + row.waiting, last
    refused = _execute(context, _REFUSED, {"refused": list(REFUSED)})
    return {"wrong": wrong, "waiting": waiting, "refused": {name: n for name, n in refused}}


def of_rows(context: Context, entity: str, scope: Scope) -> list[str]:
    """Statements that select the good rows that are quarantined among these and their children.

    For lists of keys only.
    """
    found = [_differences(context, entity, scope.condition("i.legacy_key", "text"))]
    for child in context.sources.children(entity):
        owned = scope.condition(child.parent_of("r"), context.sources[entity].key.base)
        keys = f"SELECT {child.key_of('r')}::text FROM {child.sql} r WHERE {owned}"
        found.append(_differences(context, child.source.entity, f"i.legacy_key IN ({keys})"))
    return found


def _differences(context: Context, entity: str, which: str) -> str:
    return _DIFFERENCES.format(good=_good(context, entity, which), entity=entity)


def _next(context: Context, entity: str, after: str | None) -> str | None:
    parameters = {"entity": entity, "after": after, "most": CHUNK_KEYS}
    found: str | None = _execute(context, _NEXT, parameters).scalar()
    return found


def _execute(context: Context, sql: str, parameters: dict[str, Any]) -> Any:
    return context.connection.execute(text(sql), context.parameters | parameters)


def _good(context: Context, entity: str, which: str) -> str:
    table, rule = context.sources[entity], context.migration.rule(context, entity)
    return _GOOD.format(
        entity=entity,
        root=table.source.parent or entity,
        refused=", ".join(f"'{name}'" for name in REFUSED),
        which=which,
        rows=rule.rows,
        reason=rule.reason,
        row_key=table.key_of(rule.alias),
        owner=table.root_of(rule.alias),
        key=context.sources.key_named(entity, "q.legacy_key"),
        row_hash=context.sources.hash_of(entity, rule.alias),
    )


_CLOSE = """
WITH removed AS (
  UPDATE migration.quarantine q SET state = 'removed', changed_at = clock_timestamp()
  WHERE q.state IN ('open', 'accepted') AND q.entity = '{entity}'
    AND NOT EXISTS (SELECT FROM {table} t WHERE {key} = {named})
  RETURNING 1
)
SELECT count(*) FROM removed
"""


class Removed(Step):
    """Closes quarantine entries whose source row is gone, before the verification counts them."""

    name = "removed"
    stage = "switch"
    queue = "migration.control"

    def items(self, context: Context) -> list[str]:
        return ["quarantine"]

    def apply(self, context: Context, scope: Scope) -> Counts:
        removed = 0
        for entity, table in context.sources.items():
            named = context.sources.key_named(entity, "q.legacy_key")
            close = _CLOSE.format(
                entity=entity, table=table.sql, key=table.key_of("t"), named=named
            )
            removed += int(context.connection.scalar(text(close)) or 0)
        return {"removed": removed}


class LateRemoved(Removed):
    """The same once the last change is replayed, so that what is left decides how the run ends."""

    name = "late_removed"
    stage = "finish"
