"""Setting rows aside: how a row enters the quarantine, first or again."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

OWNER_QUARANTINED, WORKER_DIED = "owner_quarantined", "worker_died"
OWNER_SET_ASIDE = "The owner is set aside."

# How a row that is set aside (again) enters the quarantine; an operator's acceptance stands.
SET_ASIDE_AGAIN = """ON CONFLICT (entity, legacy_key) DO UPDATE SET
    run_id = excluded.run_id, batch_id = excluded.batch_id, reason = excluded.reason,
    message = excluded.message, changed_at = clock_timestamp(),
    attempts = CASE WHEN q.state IN ('open', 'accepted') THEN q.attempts + 1 ELSE 1 END,
    state = CASE WHEN q.state = 'accepted' THEN 'accepted' ELSE 'open' END"""

_SET_ASIDE = text(
    "INSERT INTO migration.quarantine AS q"
    " (entity, legacy_key, run_id, batch_id, reason, message, attempts)"
    " SELECT :entity, key, :run_id, :batch_id, :reason, :message, :attempts"
    f" FROM unnest(CAST(:keys AS text[])) AS key {SET_ASIDE_AGAIN}"
)


def set_aside(
    connection: Connection,
    run_id: str,
    batch_id: int,
    entity: str,
    keys: Sequence[str],
    *,
    reason: str,
    message: str,
    attempts: int = 1,
) -> None:
    """Quarantine rows by key; the message is for people, and holds nothing of the row."""
    connection.execute(
        _SET_ASIDE,
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
    """Whether all these rows were refused by the database before, and are set aside for it."""
    found = connection.scalar(
        text(
            "SELECT count(*) FROM migration.quarantine q WHERE q.entity = :entity"
            " AND q.legacy_key = ANY(:keys) AND q.reason = 'rejected'"
            " AND q.state IN ('open', 'accepted')"
        ),
        {"entity": entity, "keys": list(keys)},
    )
    return bool(found == len(keys))
