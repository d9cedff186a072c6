"""What the stages keep of their batches is what a scan of these adds up, after any command."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from models.ledger import sums
from models.settings import Settings
from producer.reports import status
from producer.runs import control, rollback
from producer.schema import upgrade
from tests.driving import change, go_on, scalar, start, whole_run
from tests.ledger_watch import wrong_sums

USERS, BATCH_SIZE = 60, 10
LEFT = "SELECT count(*) FROM migration.stages s JOIN migration.batches b ON b.stage = s.name"
BEHIND = f"{LEFT} AND b.run_id = s.run_id AND b.id > s.summed_to"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing counts as recent, so that all that is settled is summed up."""
    monkeypatch.setattr(sums, "RECENT_SECONDS", 0)


def require_right(engine: Engine) -> None:
    with engine.connect() as connection:
        assert wrong_sums(connection) == []


@pytest.mark.long
def test_the_sums_are_right_after_a_check_a_retry_and_a_rollback_by_force(
    engine: Engine, settings: Settings
) -> None:
    run_id = start(engine, settings)
    go_on(engine, settings, run_id, before=lambda _: require_right(engine))
    # The last stage ends with its run.
    assert scalar(engine, f"{BEHIND} WHERE s.name <> 'finish'") == 0
    control.check_again(engine, settings, run_id, "verification")
    require_right(engine)
    go_on(engine, settings, run_id)
    control.retry(engine, settings, run_id)
    require_right(engine)
    go_on(engine, settings, run_id)
    change(engine, "UPDATE ai_tools SET name = 'Changed' WHERE id = (SELECT min(id) FROM ai_tools)")
    for force in (False, True):
        rollback.start(engine, settings, run_id, force=force)
        require_right(engine)
        found = go_on(engine, settings, run_id, before=lambda _: require_right(engine))
        assert (found.state, bool(found.conflicts)) == ("rolled_back", not force)
    require_right(engine)


def test_an_upgrade_sums_up_the_runs_of_an_older_ledger(engine: Engine, settings: Settings) -> None:
    before = whole_run(engine, settings)
    change(engine, "UPDATE migration.stages SET sums = '{}', summed_to = 0, summed_until = NULL")
    assert scalar(engine, BEHIND) > 0
    upgrade.upgrade(engine, settings)
    assert scalar(engine, BEHIND) == 0
    require_right(engine)
    assert status.read(engine, None) == before
    assert status.read(engine, None).rows["ai_tools"] > 0
