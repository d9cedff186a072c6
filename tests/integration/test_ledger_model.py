"""Any interleaving of workers that die or come late, operators and reconcilers ends the same.

A state machine draws what happens next; messages lie in a bag, from which they come in any order,
late, twice or never. HYPOTHESIS_PROFILE=search looks further, and elsewhere each time.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import hypothesis
import pytest
import sqlalchemy as sa
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from models.errors import NotAllowed
from models.ledger import claims
from models.ledger.tables import OPEN_STATES, quarantine
from models.postgres import database as databases
from models.settings import load
from producer.reports import status
from producer.runs import acceptance, control
from producer.runs import advance as enqueue
from tests.ledger_watch import digest
from tests.ledger_workers import ANY, FEW, Workers
from tests.ledger_world import END, STARTS, Templates

_COMMON = {
    "deadline": None,
    "database": None,
    "print_blob": True,
    "suppress_health_check": list(hypothesis.HealthCheck),
}
hypothesis.settings.register_profile(
    "ledger", max_examples=15, stateful_step_count=30, derandomize=True, **_COMMON
)
# Shows a failure as it was found: to make it shorter would take hours.
hypothesis.settings.register_profile(
    "search",
    max_examples=300,
    stateful_step_count=60,
    phases=[hypothesis.Phase.generate],
    derandomize=False,
    **_COMMON,
)
BUDGET = hypothesis.settings.get_profile(os.environ.get("HYPOTHESIS_PROFILE", "ledger"))
MOST_RUNS = 3


@pytest.fixture(scope="module")
def templates(servers: Any) -> Iterator[Templates]:
    settings = load().model_copy(update={"batch_size": 15})
    with contextlib.ExitStack() as exits:
        yield Templates(servers.database_url, settings, exits)


class LedgerModel(Workers):
    """All parties: each step is one transaction, or one worker's batch."""

    templates: ClassVar[Templates]
    ended: ClassVar[int] = 0

    @initialize(start=st.sampled_from(STARTS[::-1]), killers=st.lists(ANY, max_size=2))
    def begin(self, start: str, killers: list[int]) -> None:
        """Start in the middle, often with batches split, which chance alone rarely brings about."""
        self.start_at(self.templates.clone(start))
        for pick in killers:
            if self.place.messages:
                self.kill(pick)

    def teardown(self) -> None:
        if self.place is None:
            return
        try:
            # An example that has failed already has nothing to bring to its end.
            if sys.exc_info()[0] is None:
                self.end()
                type(self).ended += 1
        finally:
            self.place.close()

    @rule(times=FEW, pick=ANY)
    def advance(self, times: int, pick: int) -> None:
        """A chord's body, of whichever run, several times over."""
        known = self.place.run_ids()
        for _ in range(times if known else 0):
            self.place.advance(known[pick % len(known)])

    @precondition(lambda self: self.place.open_run() or len(self.place.run_ids()) < MOST_RUNS)
    @rule()
    def open_run(self) -> None:
        was_open = self.place.open_run()
        run_id, is_new = enqueue.open_run(self.engine, self.place.settings)
        assert is_new == (was_open is None) and run_id == (was_open or run_id)
        self.place.advance(run_id)

    @rule()
    def pause(self) -> None:
        self.operate(lambda: control.pause(self.engine, None), ("preparing", "running"))

    @precondition(lambda self: self.place.open_run())
    @rule()
    def cancel(self) -> None:
        self.operate(lambda: control.cancel(self.engine, None), (*OPEN_STATES, "spent"))

    @rule(pick=ANY)
    def resume(self, pick: int) -> None:
        self.of_any(pick, control.resume, ("paused", "spent", "cancelled"))

    @rule(pick=ANY)
    def retry(self, pick: int) -> None:
        self.of_any(pick, control.retry, (*END, "spent"))
        self.place.watch.check(is_retry=True)

    @precondition(lambda self: self.place.run_ids())
    @rule(stage=st.sampled_from(("verification", "reconciliation")))
    def check_again(self, stage: str) -> None:
        with contextlib.suppress(NotAllowed):
            control.check_again(self.engine, self.place.settings, None, stage)

    @rule(pick=ANY)
    def accept(self, pick: int) -> None:
        newest = self.place.run_ids()[-1:]
        query = sa.select(quarantine.c.entity + ":" + quarantine.c.legacy_key).where(
            quarantine.c.state == "open", quarantine.c.run_id.in_(newest)
        )
        with self.engine.connect() as connection:
            found = connection.scalars(query.order_by(sa.text("1"))).all()
        if found:
            key = found[pick % len(found)]
            assert acceptance.accept(self.engine, self.place.settings, None, [key]) >= 1

    @invariant()
    def nothing_is_wrong(self) -> None:
        if self.place:
            self.place.watch.check()

    def of_any(self, pick: int, how: Callable[..., str], states: Sequence[str]) -> None:
        """An operator's command on any run; refused while another one is open."""
        known = self.place.run_ids()
        if known:
            run_id = known[pick % len(known)]
            if self.place.open_run() not in (None, run_id):
                states = ()
            self.operate(lambda: how(self.engine, self.place.settings, run_id), states, run_id)

    def operate(
        self, command: Callable[[], str], states: Sequence[str], run_id: str | None = None
    ) -> None:
        """Assert that a command works in these states of the run, and only in these."""
        if known := self.place.run_ids():
            found = status.read(self.engine, run_id or known[-1])
            # Paused by its error budget.
            state = "spent" if found.state == "paused" and found.error else found.state
            try:
                command()
            except NotAllowed:
                assert state not in states
            else:
                assert state in states

    def end(self) -> None:
        """With good workers and an operator who means well, all is as if nothing had been."""
        self.place.finish()
        for claim in self.held:
            self.commit_late(claim)
            self.place.watch.check()
        assert self.place.wrong_rows() == []


@pytest.mark.long
@pytest.mark.timeout(600 if BUDGET.max_examples < 50 else 7200)
def test_whatever_happens_in_whatever_order_the_end_is_that_of_an_undisturbed_run(
    templates: Templates,
) -> None:
    LedgerModel.templates = templates
    run_state_machine_as_test(LedgerModel, settings=BUDGET)
    assert LedgerModel.ended


@pytest.mark.long
def test_a_worker_that_thaws_in_the_next_run_leaves_its_triggers_alone(
    templates: Templates,
) -> None:
    with contextlib.closing(templates.clone("finish")) as place:
        place.deliver_many(1000, until="release")
        release = place.messages[0]
        with databases.transaction(place.engine) as connection:
            frozen = claims.claim(connection, release.run_id, release.batch_id, "frozen")
        place.lapse()
        place.deliver_many(3)
        place.advance(release.run_id)
        following, is_new = enqueue.open_run(place.engine, place.settings)
        assert is_new
        place.advance(following)
        place.deliver_many(1000, until="verification")
        before = digest(place.engine)
        assert frozen and place.work_with(frozen) == "lost"
        assert digest(place.engine) == before
