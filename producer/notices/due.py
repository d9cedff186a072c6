"""Which messages are due, marked in the ledger; each is sent by the process that claims its mark.

The reconciler marks them in its own transaction, so an event is marked once however many workers
look. A mark is claimed before the message is sent, and closed after it: if a process dies between
the two, the message is sent again.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from models.ledger import sums
from models.postgres.database import classify
from models.settings import Settings
from models.window import NEXT_BATCH
from producer.logs import Log

# After so many tries a message is given up; `producer status --history` still has the event.
MOST_TRIES = 5
URL, COMMAND = "url", "command"
log = Log("migration.notices")

_IS_WORKED_ON = "state IN ('preparing', 'running', 'rolling_back')"
# `since`: when a batch was last at work, or an operator moved the run. A closed window and its
# opening count as work.
_IDLE = text(f"""
INSERT INTO migration.events (run_id, kind, note)
SELECT r.id, 'stuck', coalesce(
    CASE WHEN r.throttled_at > clock_timestamp() - interval '5 seconds'
      THEN 'throttled: ' || r.throttled_by END,
    'no batch was at work') || ', for ' || :minutes || ' minutes'
FROM migration.runs r
CROSS JOIN LATERAL (
  SELECT greatest(
    r.started_at,
    CASE WHEN r.throttled_by IS NULL OR r.throttled_by LIKE '%{NEXT_BATCH}%'
      THEN r.throttled_at END,
    (SELECT max(greatest(b.started_at, b.finished_at, b.lease_until))
     FROM {sums.BEHIND} WHERE s.run_id = r.id),
    (SELECT max(s.summed_until) FROM migration.stages s WHERE s.run_id = r.id),
    (SELECT max(e.at) FROM migration.events e WHERE e.run_id = r.id AND e.kind <> 'stuck')
  ) AS since) AS last
WHERE r.{_IS_WORKED_ON}
  AND last.since < clock_timestamp() - make_interval(mins => :minutes)
  AND NOT EXISTS (SELECT FROM migration.events e
    WHERE e.run_id = r.id AND e.kind = 'stuck' AND e.at > last.since)
""")
# What is older was told, or nobody wanted to be told when it happened. A pause with an error is one
# by the error budget.
_MARK = text("""
INSERT INTO migration.notices (event_id, channel)
SELECT e.id, c.channel
FROM migration.events e CROSS JOIN unnest(CAST(:channels AS text[])) AS c(channel)
WHERE e.at > clock_timestamp() - interval '1 day'
  AND (e.kind = 'stuck' OR e.kind = 'run' AND (e.state IN
    ('completed', 'completed_with_quarantine', 'failed', 'cancelled', 'rolled_back')
    OR e.state = 'paused' AND e.note IS NOT NULL))
ON CONFLICT DO NOTHING
""")
_IS_OPEN = """
o.sent_at IS NULL AND o.tries < :most AND o.next_at <= clock_timestamp()
AND o.channel = ANY(:channels)"""
# A ledger of an older version has none.
_IS_THERE = text("SELECT to_regclass('migration.notices') IS NOT NULL")
_IS_DUE = text(f"SELECT EXISTS (SELECT FROM migration.notices o WHERE {_IS_OPEN})")
_CLAIM = text(f"""
UPDATE migration.notices n
SET tries = n.tries + 1, next_at = clock_timestamp() + make_interval(mins => n.tries + 1)
FROM migration.events e
WHERE e.id = n.event_id AND (n.event_id, n.channel) = (
  SELECT o.event_id, o.channel FROM migration.notices o
  WHERE {_IS_OPEN}
  ORDER BY o.event_id, o.channel LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING n.event_id, n.channel, e.run_id, e.kind, e.state, e.note
""")
_CLOSE = text(
    "UPDATE migration.notices SET sent_at = clock_timestamp()"
    " WHERE event_id = :event_id AND channel = :channel"
)


@dataclass(frozen=True)
class Notice:
    """A message to be sent by one channel."""

    event_id: int
    channel: str
    run_id: str
    kind: str
    state: str | None
    note: str | None


def channels(settings: Settings) -> list[str]:
    """The channels that this process can send by."""
    found = {URL: settings.notify_url, COMMAND: settings.notify_command}
    return [name for name, value in found.items() if value]


def mark(connection: Connection, settings: Settings) -> bool:
    """Mark what is due, with the reconciler's lock; whether this process may send something."""
    mine = channels(settings)
    if not mine or not connection.scalar(_IS_THERE):
        return False
    try:
        # By itself: a role without rights on these tables still reconciles.
        with connection.begin_nested():
            connection.execute(_IDLE, {"minutes": settings.notify_minutes})
            connection.execute(_MARK, {"channels": mine})
            return bool(connection.scalar(_IS_DUE, {"most": MOST_TRIES, "channels": mine}))
    except DBAPIError as failure:
        log.warning("no notices for now", why=classify(failure).message)
        return False


def claim(connection: Connection, settings: Settings) -> Notice | None:
    """Claim the oldest message that is due; None where there is none."""
    values = {"most": MOST_TRIES, "channels": channels(settings)}
    row = connection.execute(_CLAIM, values).one_or_none()
    return Notice(*row) if row else None


def close(connection: Connection, notice: Notice) -> None:
    """Note that it was sent."""
    connection.execute(_CLOSE, {"event_id": notice.event_id, "channel": notice.channel})
