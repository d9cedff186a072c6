"""The workers of the state machine: they die, come late, give up, or do their work."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from sqlalchemy import Engine

from models.errors import LeaseLost
from models.ledger import claims
from models.ledger.claims import MAX_LEASE_EXPIRIES, Claim
from models.ledger.tables import batches, runs
from models.postgres import database as databases
from producer.runs import reconciler
from tests.ledger_watch import digest
from tests.ledger_world import Place

ANY = st.integers(0, 999)
FEW = st.integers(1, 3)


class Workers(RuleBasedStateMachine):
    """Rules of the workers, and of time: a subclass says where it all happens."""

    place: Place | None = None

    def start_at(self, place: Place) -> None:
        """Begin with no claim on anything."""
        self.place = place
        self.held: list[Claim] = []
        self.given: dict[int, int] = {}

    @property
    def engine(self) -> Engine:
        return self.place.engine

    def take(self, pick: int) -> Claim | None:
        """Claim the batch of a message, or find that it is not to be had."""
        message = self.place.messages[pick % len(self.place.messages)]
        with databases.transaction(self.engine) as connection:
            claim = claims.claim(connection, message.run_id, message.batch_id, "frozen")
        if claim:
            assert claim.attempt > self.given.get(claim.batch_id, 0)
            self.given[claim.batch_id] = claim.attempt
            self.held.append(claim)
        else:
            assert not self.is_to_be_had(message.batch_id)
        return claim

    @precondition(lambda self: self.place.messages)
    @rule(pick=ANY)
    def claim(self, pick: int) -> None:
        self.take(pick)

    @precondition(lambda self: self.place.messages)
    @rule(pick=ANY, deaths=FEW)
    def die(self, pick: int, deaths: int) -> None:
        """A worker dies of a batch, and so do those that take it after."""
        claim = self.take(pick)
        for death in range(deaths):
            if claim is None or not self.stands(claim):
                return
            self.place.lapse(claim.batch_id)
            self.tick()
            waiting = [message.batch_id for message in self.place.messages]
            if death + 1 < deaths and claim.batch_id in waiting:
                claim = self.take(waiting.index(claim.batch_id))

    @precondition(lambda self: self.place.messages)
    @rule(pick=ANY)
    def kill(self, pick: int) -> None:
        """A batch takes down all that come to it, until it is split."""
        self.die(pick, MAX_LEASE_EXPIRIES)

    @rule()
    def tick(self) -> None:
        reconciler.tick(self.engine, self.place.settings)
        self.place.watch.check()

    @rule()
    def lapse(self) -> None:
        """All leases run out."""
        self.place.lapse()

    @precondition(lambda self: self.held)
    @rule(pick=ANY)
    def lapse_one(self, pick: int) -> None:
        self.place.lapse(self.held[pick % len(self.held)].batch_id)

    @precondition(lambda self: self.held)
    @rule(pick=ANY)
    def commit(self, pick: int) -> None:
        """A worker that has its claim since some time does the batch, whoever has it by now."""
        self.commit_late(self.held.pop(pick % len(self.held)))

    @precondition(lambda self: self.held)
    @rule(pick=ANY, how=st.sampled_from((claims.hand_back, claims.fail, claims.release)))
    def give_up(self, pick: int, how: Callable[..., None]) -> None:
        claim = self.held.pop(pick % len(self.held))
        self.change(claim, how, "planned")

    @precondition(lambda self: self.held)
    @rule(pick=ANY)
    def renew(self, pick: int) -> None:
        self.change(self.held[pick % len(self.held)], claims.renew)

    @precondition(lambda self: self.place.messages)
    @rule(pick=ANY, times=FEW, stays=st.booleans())
    def deliver(self, pick: int, times: int, stays: bool) -> None:
        """A message comes, at once again, and some other time once more where it stays."""
        message = self.place.messages[pick % len(self.place.messages)]
        for time in range(times):
            wanted = "done" if self.is_to_be_had(message.batch_id) else "skipped"
            assert self.place.work(message) == wanted
            assert time == 0 or wanted == "skipped"
        if not stays:
            self.place.messages.remove(message)

    @rule(count=st.integers(1, 40))
    def deliver_many(self, count: int) -> None:
        """Good workers, undisturbed for a while."""
        self.place.deliver_many(count)

    @rule()
    def lose_messages(self) -> None:
        """Redis is flushed, a while ago."""
        self.place.lose_messages()

    def commit_late(self, claim: Claim) -> None:
        stands, before = self.stands(claim), digest(self.engine)
        assert self.place.work_with(claim) == ("done" if stands else "lost")
        if not stands:
            changed = set(before.splitlines()) ^ set(digest(self.engine).splitlines())
            assert not changed, claim

    def change(self, claim: Claim, how: Callable[..., None], *arguments: str) -> None:
        stands, before = self.stands(claim), digest(self.engine)
        try:
            with databases.transaction(self.engine) as connection:
                how(connection, claim, *arguments)
        except LeaseLost:
            assert not stands and digest(self.engine) == before
        else:
            assert stands

    def stands(self, claim: Claim) -> bool:
        batch = self.place.batch(claim.batch_id)
        return bool(batch and (batch.state, batch.attempt) == ("running", claim.attempt))

    def is_to_be_had(self, batch_id: int) -> bool:
        """A batch that waits, of a running run, with its stage's turn come."""
        query = sa.select(sa.text("observed.stage_before(run_id, stage)"), batches.c.state).where(
            batches.c.id == batch_id,
            batches.c.run_id.in_(
                sa.select(runs.c.id).where(runs.c.state.in_(("preparing", "running")))
            ),
            (batches.c.state == "pending")
            | (claims.is_expired() & sa.not_(claims.expires_too_often())),
        )
        with self.engine.connect() as connection:
            found = connection.execute(query).one_or_none()
        return found is not None and found[0] is None
