"""Quarantining rows: how a row enters the quarantine, first or again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, text

OWNER_QUARANTINED, REJECTED, WORKER_DIED = "owner_quarantined", "rejected", "worker_died"
# No rule says that these rows are bad: the database refused them, or they killed their workers.
REFUSED = (REJECTED, WORKER_DIED)
OWNER_IS_QUARANTINED = "The owner is quarantined."

# How a row that is quarantined (again) enters the quarantine; an operator's acceptance stands.
QUARANTINE_AGAIN = """ON CONFLICT (entity, legacy_key) DO UPDATE SET
    run_id = excluded.run_id, batch_id = excluded.batch_id, reason = excluded.reason,
    message = excluded.message, row_hash = excluded.row_hash, changed_at = clock_timestamp(),
    attempts = CASE WHEN q.state IN ('open', 'accepted') THEN q.attempts + 1 ELSE 1 END,
    state = CASE WHEN q.state = 'accepted' THEN 'accepted' ELSE 'open' END"""

_SET_ASIDE = (
    "INSERT INTO migration.quarantine AS q"
    " (entity, legacy_key, run_id, batch_id, reason, message, attempts, row_hash)"
    " SELECT :entity, key, :run_id, :batch_id, :reason, :message, :attempts, {row_hash}"
    f" FROM unnest(CAST(:keys AS text[])) AS key {QUARANTINE_AGAIN}"
)


def is_quarantined(entity: str, key: str, which: str = "true") -> str:
    """SQL condition: the row of an entity (a literal) with this key is in the quarantine.

    `which` is one more condition on its entry `q`.
    """
    return (
        f"EXISTS (SELECT FROM migration.quarantine q WHERE q.entity = {entity}"
        f" AND q.legacy_key = {key}::text AND q.state IN ('open', 'accepted') AND {which})"
    )


def quarantine_rows(
    connection: Connection,
    run_id: str,
    batch_id: int,
    entity: str,
    keys: Sequence[str],
    *,
    reason: str,
    message: str,
    attempts: int = 1,
    row_hash: str = "NULL::bigint",
) -> None:
    """Quarantine rows by key; the message is for people, and holds nothing of the row.

    `row_hash` is SQL for the hash of the legacy row that the text `key` names.
    """
    connection.execute(
        text(_SET_ASIDE.format(row_hash=row_hash)),
        {
            "run_id": run_id,
            "batch_id": batch_id,
            "entity": entity,
            "keys": list(keys),
            "reason": reason,
            "message": message,
            "attempts": attempts,
        },
    )


def are_rejected(connection: Connection, entity: str, keys: Sequence[str]) -> bool:
    """Whether all these rows were refused by the database before, and are quarantined for it."""
    found = connection.scalar(
        text(
            "SELECT count(*) FROM migration.quarantine q WHERE q.entity = :entity"
            " AND q.legacy_key = ANY(:keys) AND q.reason = 'rejected'"
            " AND q.state IN ('open', 'accepted')"
        ),
        {"entity": entity, "keys": list(keys)},
    )
    return bool(found == len(keys))


_RESOLVE = """
UPDATE migration.quarantine q SET state = 'resolved', changed_at = clock_timestamp()
WHERE q.entity = :entity AND q.state IN ('open', 'accepted')
  AND q.batch_id IS DISTINCT FROM :batch_id
  AND q.legacy_key IN (SELECT {key}::text FROM {table} t WHERE {scope})
  AND coalesce((SELECT b.step FROM migration.batches b WHERE b.id = q.batch_id), :step) = :step
"""


def resolve(
    connection: Connection,
    table: str,
    key: str,
    scope: str,
    parameters: Mapping[str, Any],
    **of: Any,
) -> None:
    """Mark the rows that a batch migrated, and did not quarantine again, as resolved.

    `key` and `scope` are the key and a condition of the rows `t` of the table; `of` names entity,
    step and batch.
    """
    statement = text(_RESOLVE.format(table=table, key=key, scope=scope))
    connection.execute(statement, {**parameters, **of})
