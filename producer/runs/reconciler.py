"""Does whatever a lost message, a dead worker or an unfired chord left undone.

It runs in every worker and every waiting command; a transaction-level lock keeps one active at a
time. All it reads is the ledger, and whether the queues are empty.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from models.errors import MigrationError
from models.ledger.claims import expires_too_often, is_expired
from models.ledger.tables import WORKED_ON, batches, move_batches, recoveries, runs, throttled_by
from models.postgres.database import transaction
from models.settings import Settings
from producer import outage
from producer.broker import namespace
from producer.broker.messages import QUEUES, Message
from producer.broker.queue import app, publish_again
from producer.logs import Log
from producer.notices import due, send
from producer.runs import advance, poison

TICK_SECONDS = 3.0
# While there is no ledger: so the first batches of a new one start at once.
LOOK_SECONDS = 0.3
# A message that nobody claimed for this long while its queue is empty is lost.
LOST_SECONDS = 10
MOST_AT_ONCE = 500
_LOCK = 0x6D696772  # any constant: the key of the advisory lock
log = Log("migration.reconciler")

_COLUMNS = (batches.c.run_id, batches.c.id, batches.c.stage, batches.c.step)


class Reconciler(threading.Thread):
    """A thread that ticks until it is stopped; an unreachable server is tried again."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        super().__init__(daemon=True, name="reconciler")
        self._engine, self._settings = engine, settings
        self._over = threading.Event()

    def run(self) -> None:
        said = ""
        while not self._over.wait(TICK_SECONDS if namespace.is_known() else LOOK_SECONDS):
            try:
                tick(self._engine, self._settings)
                if said != namespace.known():
                    said = namespace.known()
                    _say(said)
            except MigrationError as failure:
                log.warning("reconciler waits", error=failure.message)
            except Exception as failure:
                if why := outage.cause(failure):
                    log.warning("reconciler waits", error=why)
                else:
                    log.exception("reconciler waits")

    def stop(self) -> None:
        """Stop after the present tick."""
        self._over.set()


def _say(prefix: str) -> None:
    """Once for each ledger: for which one this worker takes messages, or why it takes none."""
    if prefix == namespace.NO_LEDGER:
        why = "the database holds no ledger of its own; producer schema upgrade makes it"
        log.warning("takes no messages", why=why)
    elif namespace.is_strangers(prefix):
        why = "its tables are set to, or resolve to, other tables than the open run migrates"
        log.warning("takes no messages", why=why)
    else:
        log.info("takes messages", prefix=prefix)


def tick(engine: Engine, settings: Settings) -> int:
    """One round over the open runs; returns how many batches it published again.

    Messages to people that are due are sent beside it.
    """
    with transaction(engine) as connection:
        # Workers may be there before the first run, and so before the ledger.
        if not namespace.read(connection, settings):
            return 0
        if not connection.scalar(sa.select(sa.func.pg_try_advisory_xact_lock(_LOCK))):
            return 0
        is_due = due.mark(connection, settings)
        open_runs = connection.scalars(
            sa.select(runs.c.id).where(runs.c.state.in_(WORKED_ON))
        ).all()
        messages: list[Message] = []
        if open_runs:
            messages = _reopen_expired(connection, settings) + _take_lost(connection)
    if is_due:
        send.deliver(engine, settings)
    if messages:
        log.warning("published again", batches=len(messages))
        publish_again(messages)
    for run_id in open_runs:
        advance.advance(engine, settings, run_id)
    return len(messages)


def _reopen_expired(connection: Connection, settings: Settings) -> list[Message]:
    """Batches whose lease ran out go back; one that took its workers down too often is split."""
    suspects = connection.execute(
        sa.select(batches)
        .where(is_expired(), expires_too_often())
        .with_for_update(skip_locked=True)
    )
    found = suspects.mappings().all()
    for batch in found:
        poison.split(connection, settings, batch)
    _note(connection, "split", (batch["run_id"] for batch in found))
    reopened = connection.execute(
        move_batches(
            "pending",
            lapses=batches.c.lapses + 1,
            expiries=batches.c.expiries + 1,
            republished=batches.c.republished + 1,
            published_at=sa.func.clock_timestamp(),
        )
        .where(is_expired(), ~expires_too_often())
        .returning(*_COLUMNS)
    )
    messages = [Message(*row) for row in reopened]
    _note(connection, "expired", (message.run_id for message in messages))
    return messages


def _take_lost(connection: Connection) -> list[Message]:
    """Batches that wait although their queue is empty: their messages are gone."""
    age = sa.func.clock_timestamp() - sa.text(f"interval '{LOST_SECONDS} seconds'")
    waiting = (
        sa.select(*_COLUMNS)
        .join(runs, runs.c.id == batches.c.run_id)
        .where(batches.c.state == "pending", batches.c.published_at < age)
        # While it is throttled, workers hold messages that they have not claimed.
        .where(runs.c.state.in_(WORKED_ON), throttled_by.is_(None))
    )
    kinds = connection.execute(
        waiting.with_only_columns(
            batches.c.run_id, sa.func.min(batches.c.id), batches.c.stage, batches.c.step
        ).group_by(batches.c.run_id, batches.c.stage, batches.c.step)
    ).all()
    if not kinds:
        return []
    empty = {name for name, length in queue_lengths().items() if length == 0}
    lost = [kind for kind in (Message(*row) for row in kinds) if kind.queue in empty]
    taken = connection.execute(
        sa.select(*_COLUMNS)
        .where(batches.c.state == "pending", batches.c.published_at < age)
        .where(
            sa.tuple_(batches.c.run_id, batches.c.stage, batches.c.step).in_(
                [(kind.run_id, kind.stage, kind.step) for kind in lost]
            )
        )
        .order_by(batches.c.id)
        .limit(MOST_AT_ONCE)
        .with_for_update(skip_locked=True)
    ).all()
    connection.execute(
        sa.update(batches)
        .where(batches.c.id.in_([row.id for row in taken]))
        .values(published_at=sa.func.clock_timestamp(), republished=batches.c.republished + 1)
    )
    _note(connection, "lost", (row.run_id for row in taken))
    return [Message(*row) for row in taken]


def _note(connection: Connection, kind: str, run_ids: Iterable[str]) -> None:
    for run_id, count in Counter(run_ids).items():
        connection.execute(sa.insert(recoveries).values(run_id=run_id, kind=kind, batches=count))


def queue_lengths() -> dict[str, int]:
    """Messages that wait in each queue; raises a RedisError when Redis does not answer."""
    with (
        app.connection_or_acquire() as connection,
        # The channel's own client may still wait for an answer: to a look for workers, say.
        connection.default_channel.conn_or_acquire() as client,
    ):
        return {name: int(client.llen(name)) for name in QUEUES}
