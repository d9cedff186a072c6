"""The quarantine judged again: is each row that was set aside by a rule bad by that rule?

The rule's words are those of `forecast.py`, which no worker uses. Not judged are rows that the
database refused, rows that an operator accepted, and rows that changed since: they wait for a
retry.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import text

from models.dashboard.rejects import reason_of, rows_of
from models.engine.row_hash import ENTITIES, hash_of, key_of
from models.engine.step import Context, Counts, Scope
from models.ledger.quarantine import REFUSED
from models.ledger.tables import VERIFICATION

CHUNK_KEYS = 50_000
_ALIASES = {"user": "u", "subscription": "s", "project": "p"}

# Good rows: no rule says that they are bad, their owner is not set aside either, and no change of
# theirs waits to be replayed. A row without a hash was set aside by hand or by an older version.
_GOOD = """
SELECT q.legacy_key, coalesce(q.row_hash = {row_hash}, true) AS is_as_judged
FROM (
  SELECT i.legacy_key, i.row_hash FROM migration.quarantine i
  WHERE i.entity = '{entity}' AND i.state = 'open' AND i.reason NOT IN ({refused}) AND {which}
) AS q
CROSS JOIN LATERAL (SELECT {key} AS id OFFSET 0) AS k
JOIN {rows} ON {alias}.id = k.id
WHERE ({reason}) IS NULL AND NOT EXISTS (
  SELECT FROM migration.quarantine o WHERE o.entity = 'user' AND '{entity}' <> 'user'
    AND o.legacy_key = u.id::text AND o.state IN ('open', 'accepted'))
AND NOT EXISTS (
  SELECT FROM migration.changes c WHERE c.entity = '{entity}' AND c.legacy_key = q.legacy_key)
AND NOT EXISTS (
  SELECT FROM migration.changes c WHERE c.entity = 'user' AND c.owner_key = u.id::text)
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
    for entity in ENTITIES:
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


def of_users(context: Context, scope: Scope) -> list[str]:
    """Statements that select the good rows that are set aside among users and what they own."""
    owned = scope.condition("r.user_id", context.legacy.users.columns["id"].base)
    theirs = (
        f"i.legacy_key IN (SELECT r.id::text FROM {context.legacy.subscriptions.sql} r"
        f" WHERE {owned})"
    )
    return [
        _differences(context, "user", scope.condition("i.legacy_key", "text")),
        _differences(context, "subscription", theirs),
    ]


def of_projects(context: Context, scope: Scope) -> list[str]:
    """The same among projects; for lists of keys only."""
    return [_differences(context, "project", scope.condition("i.legacy_key", "text"))]


def _differences(context: Context, entity: str, which: str) -> str:
    return _DIFFERENCES.format(good=_good(context, entity, which), entity=entity)


def _next(context: Context, entity: str, after: str | None) -> str | None:
    parameters = {"entity": entity, "after": after, "most": CHUNK_KEYS}
    found: str | None = _execute(context, _NEXT, parameters).scalar()
    return found


def _execute(context: Context, sql: str, parameters: dict[str, Any]) -> Any:
    return context.connection.execute(text(sql), context.parameters | parameters)


def _good(context: Context, entity: str, which: str) -> str:
    reason, _ = reason_of(context.connection, context.legacy, entity, has_ledger=True)
    return _GOOD.format(
        entity=entity,
        alias=_ALIASES[entity],
        refused=", ".join(f"'{name}'" for name in REFUSED),
        which=which,
        rows=rows_of(context.legacy, entity),
        reason=reason,
        key=key_of(context.legacy, entity, "q.legacy_key"),
        row_hash=hash_of(context.legacy, entity, _ALIASES[entity]),
    )
