"""The view that scales the workers counts what the queues' messages would, and a run's own need."""

from __future__ import annotations

from collections import Counter

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, text

from models.ledger.tables import batches
from models.settings import Settings
from producer.broker.messages import QUEUES, Message
from producer.runs import advance, control, rollback
from producer.schema import upgrade
from tests.driving import change, go_on, start

USERS, BATCH_SIZE = 300, 50


def backlog(engine: Engine) -> dict[str, int]:
    with engine.connect() as connection:
        found = connection.execute(text("SELECT queue, batches FROM migration.backlog"))
        return {row.queue: row.batches for row in found}


def expected(engine: Engine) -> dict[str, int]:
    columns = batches.c
    with engine.connect() as connection:
        is_open = columns.state.in_(("pending", "running"))
        found = connection.execute(sa.select(columns.stage, columns.step).where(is_open))
        counted = Counter(Message("", 0, row.stage, row.step).queue for row in found)
    return {queue: counted[queue] + (queue == "migration.control") for queue in QUEUES}


NOBODY = dict.fromkeys(QUEUES, 0)


@pytest.mark.long
def test_it_is_the_open_batches_of_each_queue_through_a_run_and_its_rollback(
    engine: Engine, settings: Settings
) -> None:
    seen: list[dict[str, int]] = []

    def look(_: str) -> None:
        assert backlog(engine) == expected(engine)
        seen.append(backlog(engine))

    upgrade.upgrade(engine, settings)
    assert backlog(engine) == NOBODY
    run_id = start(engine, settings)
    go_on(engine, settings, run_id, before=look)
    assert backlog(engine) == NOBODY
    assert all(max(found[queue] for found in seen) > 1 for queue in QUEUES)
    rollback.start(engine, settings, None, force=False)
    go_on(engine, settings, run_id, before=look)
    assert backlog(engine) == NOBODY


def test_a_run_keeps_one_worker_between_two_windows_and_none_while_it_is_paused(
    engine: Engine, settings: Settings
) -> None:
    run_id = start(engine, settings)
    assert backlog(engine) == NOBODY | {"migration.control": 1}
    advance.advance(engine, settings, run_id)
    change(engine, "UPDATE migration.batches SET state = 'done'")
    assert backlog(engine) == NOBODY | {"migration.control": 1}
    control.pause(engine, run_id)
    assert backlog(engine) == NOBODY
