"""Databases with a run at some moment, copied in an instant, and good hands to work there."""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import text
from sqlalchemy.engine import make_url

from models.ledger import claims, identity, sums
from models.ledger.claims import Claim
from models.ledger.tables import OPEN_STATES, batches, quarantine, runs
from models.postgres import database as databases
from models.settings import DEFAULT_GRANTS, Settings, parse_grants
from producer.broker.messages import QUEUES, Message
from producer.reports import status
from producer.runs import advance as enqueue
from producer.runs import control, reconciler
from producer.schema import upgrade
from tests import oracle, variants
from tests.conftest import fresh_database
from tests.ledger_watch import INSTALL, Watch
from worker import batch

STARTS = ("nowhere", "organization", "users", "projects", "switch", "verification", "finish")
END = ("completed", "completed_with_quarantine", "failed")
USERS = 30


class Place:
    """One database, the messages on their way, and workers that do their work."""

    def __init__(
        self, url: str, settings: Settings, before: oracle.Snapshot, exits: ExitStack
    ) -> None:
        # Nothing here outlives its process.
        self.engine = databases.create(f"{url}&options=-csynchronous_commit%3Doff")
        self.settings, self._before = settings, before
        with self.engine.begin() as connection:
            # It is a copy of a template: the ledger has the identity of that.
            if connection.scalar(sa.text("SELECT to_regproc('migration.ledger_id')")):
                identity.settle(connection)
            waiting = connection.execute(
                sa.select(batches.c.run_id, batches.c.id, batches.c.stage, batches.c.step)
                .where(batches.c.state == "pending", batches.c.published_at.is_not(None))
                .order_by(batches.c.id)
            ).all()
        self.messages = [Message(*row) for row in waiting]
        self.watch = Watch(self.engine, settings)
        self._exits = exits
        exits.callback(self.engine.dispose)
        patch = exits.enter_context(pytest.MonkeyPatch.context())
        # So that nearly all is summed up: an example ends within a minute.
        patch.setattr(sums, "RECENT_SECONDS", 0)
        patch.setattr(enqueue, "publish_window", self.messages.extend)
        patch.setattr(reconciler, "publish_again", self.messages.extend)
        patch.setattr(reconciler, "queue_lengths", self._queue_lengths)

    def close(self) -> None:
        """Disconnect, and let the database go."""
        self._exits.close()

    def _queue_lengths(self) -> dict[str, int]:
        waiting = [message.queue for message in self.messages]
        return {name: waiting.count(name) for name in QUEUES}

    def run_ids(self) -> list[str]:
        with self.engine.connect() as connection:
            return list(connection.scalars(sa.select(runs.c.id).order_by(runs.c.id)))

    def open_run(self) -> str | None:
        with self.engine.connect() as connection:
            query = sa.select(runs.c.id).where(runs.c.state.in_(OPEN_STATES))
            return connection.scalar(query)

    def batch(self, batch_id: int) -> Any:
        with self.engine.connect() as connection:
            return connection.execute(
                sa.select(batches).where(batches.c.id == batch_id)
            ).one_or_none()

    def work(self, message: Message | Claim) -> str:
        """A worker does the batch of a message; returns the outcome."""
        done = batch.run(self.engine, self.settings, message.run_id, message.batch_id, "good")
        return done["outcome"]

    def work_with(self, claim: Claim) -> str:
        """A worker that has its claim since some time does the batch, whoever has it by now."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(claims, "claim", lambda *_: claim)
            return self.work(claim)

    def advance(self, run_id: str) -> None:
        enqueue.advance(self.engine, self.settings, run_id)

    def deliver_many(self, count: int, *, until: str = "") -> None:
        """Deliver messages in their order, opening windows as chords do, up to a stage or step."""
        for _ in range(count):
            run_id = self.open_run()
            if not self.messages and run_id:
                self.advance(run_id)
            if not self.messages or until in (self.messages[0].stage, self.messages[0].step):
                return
            assert self.work(self.messages.pop(0)) in ("done", "skipped")

    def lapse(self, batch_id: int | None = None) -> None:
        """Let one lease run out, or all, by moving them."""
        chosen = batches.c.id == batch_id if batch_id else sa.true()
        self._change(
            sa.update(batches)
            .where(batches.c.state == "running", chosen)
            .values(lease_until=sa.text("clock_timestamp() - interval '1 second'"))
        )

    def lose_messages(self) -> None:
        """Drop all messages; those who wait for them have waited for a minute."""
        self.messages.clear()
        age = sa.text("clock_timestamp() - interval '1 minute'")
        self._change(
            sa.update(batches).where(batches.c.published_at.is_not(None)).values(published_at=age)
        )

    def finish(self) -> None:
        """Bring the newest run to its end, and quarantined nothing but what is bad."""
        self._change(sa.update(quarantine).where(quarantine.c.state == "accepted").values(
            state="open"))  # fmt: skip
        retries = itertools.count()
        while True:
            run_id = self.open_run() or (self.run_ids() or [None])[-1]
            if run_id is None:
                run_id, _ = enqueue.open_run(self.engine, self.settings)
            state = status.read(self.engine, run_id).state
            if state in ("paused", "cancelled"):
                control.resume(self.engine, self.settings, run_id)
            elif state in ("preparing", "running"):
                self._drive(run_id)
            elif state == "failed" or self._has_killers():
                assert next(retries) < 3, status.read(self.engine, run_id).error
                control.retry(self.engine, self.settings, run_id)
                self.watch.check(is_retry=True)
            else:
                assert state == "completed_with_quarantine"
                return

    def _drive(self, run_id: str) -> None:
        while status.read(self.engine, run_id).state in ("preparing", "running"):
            self.deliver_many(1000)
            self.watch.check()
            if status.read(self.engine, run_id).state not in ("preparing", "running"):
                return
            self.lapse()
            self.lose_messages()
            reconciler.tick(self.engine, self.settings)
            self.watch.check()
            state = status.read(self.engine, run_id).state
            assert self.messages or state not in ("preparing", "running"), "the run stands still"

    def _has_killers(self) -> bool:
        with self.engine.connect() as connection:
            query = "SELECT EXISTS (SELECT FROM migration.quarantine WHERE state = 'open'"
            return bool(connection.scalar(text(f"{query} AND reason = 'worker_died')")))

    def wrong_rows(self) -> list[str]:
        """What differs from an undisturbed migration of the same rows."""
        wanted = oracle.expected(self._before, parse_grants(DEFAULT_GRANTS))
        with self.engine.connect() as connection:
            return oracle.compare(connection, self._before, wanted)

    def _change(self, statement: sa.Update) -> None:
        with self.engine.begin() as connection:
            connection.execute(statement)


class Templates:
    """Databases at each start, made when they are first asked for, each from the one before."""

    def __init__(self, server: str, settings: Settings, exits: ExitStack) -> None:
        self._server, self._settings, self._exits = server, settings, exits
        url = exits.enter_context(fresh_database(server))
        engine = databases.create(url)
        with engine.begin() as connection:
            variants.PLAIN.build(connection, USERS)
        with engine.connect() as connection:
            self._before = oracle.snapshot(connection, oracle.Names())
        upgrade.upgrade(engine, settings)
        with engine.begin() as connection:
            connection.exec_driver_sql(INSTALL.replace("%", "%%"))
        engine.dispose()
        self._made = {STARTS[0]: url}

    def clone(self, start: str) -> Place:
        """A copy of the template with its run at the start of that stage."""
        exits = ExitStack()
        url = exits.enter_context(
            fresh_database(self._server, template=_name(self._template(start)))
        )
        return Place(url, self._settings, self._before, exits)

    def _template(self, start: str) -> str:
        if start not in self._made:
            before = self._template(STARTS[STARTS.index(start) - 1])
            url = self._exits.enter_context(fresh_database(self._server, template=_name(before)))
            place = Place(url, self._settings, self._before, ExitStack())
            run_id, _ = enqueue.open_run(place.engine, self._settings)
            place.advance(run_id)
            place.deliver_many(1000, until=start)
            place.watch.check()
            place.close()
            self._made[start] = url
        return self._made[start]


def _name(url: str) -> str:
    return str(make_url(url).database)
