"""How often a batch asks the database: far away, each statement costs a round trip."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Engine

from models.dashboard.projects.switch import Switch
from models.engine.schema.indexes import TargetIndexes
from models.engine.step import Context, Counts, Scope, Step
from models.reports.run import RunReport
from models.settings import Settings
from producer.checks import preflight
from producer.runs import advance, control, rollback, windows
from producer.schema import upgrade
from tests.driving import change, go_on, scalar, spent, start, whole_run
from worker import batch

USERS, BATCH_SIZE = 250, 50
# Claim and its COMMIT included; the COMMIT of the rows is not. BEGIN goes with the first statement.
# The checks and the trial on copies, the schema step, the trial on the tables, the run.
BEFORE_PUBLISHING, AGAIN = 255, 20
INDEXES = 10
STATEMENTS = {
    "users/users": 4,
    "projects/projects": 3,
    "switch/switch": 3,
    "verification/users": 4,
    "verification/projects": 3,
    "reconciliation/credits": 4,
    # Nothing was written meanwhile: the lock is held for five of them.
    "finish/settle": 16,
}


def test_a_batch_sends_no_more_statements_than_it_must(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: dict[str, list[int]] = defaultdict(list)
    real = batch.run

    def run(*args: Any) -> Any:
        with spent(engine) as found:
            outcome = real(*args)
        query = f"SELECT stage || '/' || step FROM migration.batches WHERE id = {args[3]}"
        sent[scalar(engine, query)].append(found.statements)
        return outcome

    monkeypatch.setattr(batch, "run", run)
    whole_run(engine, settings)
    assert {name: min(sent[name]) for name in STATEMENTS} == STATEMENTS
    # Two stages of one turn share what the first batch read in the catalog.
    assert max(sent["reconciliation/credits"]) == STATEMENTS["reconciliation/credits"]


@pytest.mark.usefixtures("bare")
def test_a_first_run_sends_no_more_statements_than_it_must_before_it_publishes(
    engine: Engine, settings: Settings
) -> None:
    with spent(engine) as found:
        tried = preflight.require(engine, settings)
        upgrade.upgrade(engine, settings)
        preflight.require(engine, settings, before=tried)
        advance.open_run(engine, settings)
    assert not tried.is_real
    # A lock that autovacuum holds for a moment costs some more.
    assert found.statements <= BEFORE_PUBLISHING + AGAIN


def test_a_step_begins_at_the_pace_of_those_before_it_and_goes_on_at_its_own(
    engine: Engine, finished: RunReport
) -> None:
    change(engine, "UPDATE migration.batches SET rows = 400 WHERE key_list IS NULL")
    change(engine, "UPDATE migration.batches SET rows = 100 WHERE step = 'switch'")
    stage = SimpleNamespace(run_id=finished.run_id, name="switch")
    step, paces = Step(), []
    for step.name in ("switch", "new"):
        with spent(engine) as found, engine.begin() as connection:
            paces.append(windows._pace(connection, stage, step))
        assert found.statements == 1
    assert [pace.rows for pace in paces if pace] == [100, 400]
    # A lighter one has more rows in the same time; a heavier one has to learn what it takes.
    change(engine, "UPDATE migration.batches SET rows = 0 WHERE step <> 'switch'")
    step.name = "new"
    for step.weight, rows in ((1, 100 * Switch.weight), (0, 100 * Switch.weight), (99, 100)):
        with engine.begin() as connection:
            pace = windows._pace(connection, stage, step)
        assert pace and pace.rows == rows
    change(engine, "UPDATE migration.batches SET rows = 400 WHERE step <> 'switch'")
    # Pages without rows tell nothing.
    change(engine, "UPDATE migration.batches SET rows = 0 WHERE step = 'switch'")
    step.name = "switch"
    with engine.begin() as connection:
        pace = windows._pace(connection, stage, step)
    assert pace and pace.rows == 400


@pytest.mark.parametrize(("few", "batches"), [(20_000, [1, 2]), (0, [8, 9])])
def test_indexes_and_keys_of_a_small_run_share_a_batch(
    engine: Engine,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    few: int,
    batches: list[int],
) -> None:
    monkeypatch.setattr(windows, "FEW_ROWS", few)
    assert whole_run(engine, settings).state == "completed_with_quarantine"
    count = "SELECT count(*) FROM migration.batches WHERE step = '{}'"
    assert [scalar(engine, count.format(name)) for name in ("indexes", "contract")] == batches
    built = "SELECT count(*) FROM pg_indexes WHERE indexname LIKE 'ix!_%' ESCAPE '!'"
    open_keys = "SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND NOT convalidated"
    assert (scalar(engine, built), scalar(engine, open_keys)) == (INDEXES, 0)


def test_a_worker_that_lost_its_batch_builds_no_more_of_it(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []
    real = TargetIndexes.apply

    def apply(self: TargetIndexes, context: Context, scope: Scope) -> Counts:
        built.extend(scope.keys or ())
        if len(built) == 1:
            # Its lease ran out while it was frozen, and another worker may have the batch.
            again = "UPDATE migration.batches SET state = 'pending', attempt = attempt + 1"
            change(engine, f"{again} WHERE state = 'running'")
        return real(self, context, scope)

    monkeypatch.setattr(TargetIndexes, "apply", apply)
    assert whole_run(engine, settings).state == "completed_with_quarantine"
    first, *rest = built
    # The one that lost it stopped after the first table; the batch begins again.
    assert rest[0] == first and len(rest) == len(set(rest)) > 1


def test_each_key_of_a_batch_sees_what_the_one_before_it_built(
    engine: Engine, settings: Settings
) -> None:
    run_id = start(engine, settings)
    advance.advance(engine, settings, run_id)
    # Nothing but the schema is there: an undo builds what it needs, each index once.
    change(engine, "DROP INDEX ix_ai_suites_user_id, ix_credit_logs_user_id")
    control.cancel(engine, run_id)
    go_on(engine, settings, rollback.start(engine, settings, None, force=False))
    twice = "SELECT count(*) FROM pg_indexes WHERE indexname ~ '^ix_.*_[0-9]+$'"
    assert scalar(engine, twice) == 0
