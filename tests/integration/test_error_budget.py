"""Batches that fail with one and the same error pause the run, and it goes on from there."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine

from models.errors import NotAllowed
from models.ledger import claims
from models.ledger.tables import batches
from models.postgres.database import transaction
from models.settings import Settings
from producer.reports import happened, history, status
from producer.runs import advance, budget, control
from tests.driving import change, go_on, scalar, start
from tests.integration.test_live_writes import snapshot, wrong_rows
from tests.integration.test_refusals import refuse_on
from worker import batch

USERS, BATCH_SIZE = 200, 25
FAILED = "SELECT count(*) FROM migration.batches WHERE state = 'failed'"


def refused(engine: Engine, settings: Settings) -> str:
    """A run whose every batch of users fails, worked on until it stops."""
    run_id = start(engine, settings)
    change(engine, *refuse_on("ai_suites"))
    go_on(engine, settings, run_id)
    return run_id


@pytest.mark.long
@pytest.mark.parametrize(("first", "second"), [("retry", "resume"), ("resume", "retry")])
def test_five_batches_with_one_error_pause_the_run_and_it_goes_on_from_there(
    engine: Engine, settings: Settings, first: str, second: str
) -> None:
    before = snapshot(engine)
    run_id = refused(engine, settings)
    found = status.read(engine, run_id)
    assert (found.state, found.exit_status, found.paused_by) == ("paused", 1, "error budget")
    assert found.paused_at and found.error
    assert found.error.message.startswith(
        "5 batches failed with the same error. users: The database refuses every user"
    )
    assert "in function refuse (trigger refuse on public.ai_suites)" in found.error.message
    assert "producer retry" in found.error.hint and "producer resume" in found.error.hint
    assert "closed" not in found.model_dump_json()
    assert list(found.failures.values()) == [5] == [scalar(engine, FAILED)]
    assert not scalar(engine, "SELECT count(*) FROM migration.quarantine WHERE reason = 'rejected'")

    def try_again(verb: str) -> None:
        again = getattr(control, verb)
        assert again(engine, settings, run_id) == run_id
        assert status.read(engine, run_id).paused_by is None

    # Not fixed yet: it pauses again.
    try_again(first)
    assert go_on(engine, settings, run_id).error == found.error
    change(engine, "DROP FUNCTION refuse() CASCADE")
    try_again(second)
    ended = go_on(engine, settings, run_id)
    assert (ended.exit_status, ended.failures, ended.error) == (3, {}, None)
    assert wrong_rows(engine, before) == []
    # Ten failures, and twice a pause: the record still tells them.
    with transaction(engine) as connection:
        told = [event.what for event in history.events(connection, run_id)]
    lines = happened.lines(status.actions(engine), happened.read(engine))
    for said in (told, [line.split("  ", 2)[2] for line in lines]):
        assert sum("users: batch " in what and " failed: " in what for what in said) == 10
        assert sum(what.startswith("is paused: 5 batches") for what in said) == 2
    for verb in (first, second):
        assert sum(f"{verb} by " in line for line in lines) == 1


@pytest.mark.long
def test_fewer_failures_than_the_budget_fail_the_run(engine: Engine, settings: Settings) -> None:
    settings = settings.model_copy(update={"error_budget": 9})
    run_id = refused(engine, settings)
    found = status.read(engine, run_id)
    assert (found.state, found.paused_by, scalar(engine, FAILED)) == ("failed", None, 8)


def test_batches_with_different_errors_do_not_add_up(engine: Engine, settings: Settings) -> None:
    run_id = start(engine, settings)
    go_on_until_users(engine, settings, run_id)
    fail(engine, run_id, ["one", "two", "three", "one", "two", "three", "one", "two"])
    advance.advance(engine, settings, run_id)
    assert status.read(engine, run_id).state == "failed"


def test_workers_that_fail_at_once_pause_the_run_once(engine: Engine, settings: Settings) -> None:
    run_id = start(engine, settings)
    go_on_until_users(engine, settings, run_id)
    change(engine, *refuse_on("ai_suites"))
    with engine.connect() as connection:
        ids = connection.scalars(
            sa.select(batches.c.id).where(batches.c.state == "pending", batches.c.stage == "users")
        ).all()
    workers = [
        threading.Thread(target=batch.run, args=(engine, settings, run_id, id_, f"w/{id_}"))
        for id_ in ids
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert status.read(engine, run_id).paused_by == budget.PAUSED_BY
    # Nothing is claimed while it is paused, whoever tries.
    waiting = set(ids) - {
        row for row in _ids(engine, "SELECT id FROM migration.batches WHERE state = 'failed'")
    }
    for id_ in waiting:
        assert batch.run(engine, settings, run_id, id_, "late")["outcome"] == "skipped"


def test_failures_during_an_operators_pause_are_tried_again_when_it_is_resumed(
    engine: Engine, settings: Settings
) -> None:
    run_id = start(engine, settings)
    go_on_until_users(engine, settings, run_id)
    fail(engine, run_id, ["one"] * 8, meanwhile=lambda: control.pause(engine, run_id))
    advance.advance(engine, settings, run_id)
    found = status.read(engine, run_id)
    assert found.exit_status == 0 and found.paused_by and " from " in found.paused_by
    with pytest.raises(NotAllowed):
        control.retry(engine, settings, run_id)
    control.resume(engine, settings, run_id)
    assert go_on(engine, settings, run_id).exit_status == 3


def go_on_until_users(engine: Engine, settings: Settings, run_id: str) -> None:
    while not _ids(engine, "SELECT id FROM migration.batches WHERE stage = 'users'"):
        advance.advance(engine, settings, run_id)
        for id_ in _ids(
            engine,
            "SELECT id FROM migration.batches WHERE state = 'pending' AND stage <> 'users'",
        ):
            batch.run(engine, settings, run_id, id_, "test")


def fail(
    engine: Engine,
    run_id: str,
    errors: list[str],
    *,
    meanwhile: Callable[[], object] = lambda: None,
) -> None:
    """Fail the batches that wait, with one of these errors each."""
    held = []
    for id_ in _ids(engine, "SELECT id FROM migration.batches WHERE state = 'pending' ORDER BY id"):
        with transaction(engine) as connection:
            held.append(claims.claim(connection, run_id, id_, "test"))
    meanwhile()
    for claim, error in zip(held, errors, strict=True):
        assert claim
        with transaction(engine) as connection:
            claims.fail(connection, claim, error)


def _ids(engine: Engine, query: str) -> list[int]:
    with engine.connect() as connection:
        return list(connection.exec_driver_sql(query).scalars())
