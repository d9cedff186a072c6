"""A rehearsal tells what a run will take, and leaves nothing behind, however it ends."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine

from models.engine.schema.constraints import Contract
from models.errors import NotAllowed
from models.reports.run import RunReport
from models.settings import Settings
from producer.checks import dry_run, plan
from producer.checks.rehearsal import rehearse
from producer.demo import sample
from producer.runs import control
from tests.driving import change, go_on, scalar, spent, start, whole_run

USERS = 300
pytestmark = pytest.mark.usefixtures("bare")
# Stages in which the time of a page counts, and little else.
PAGED = ("users", "verification")
# Whatever a table or a catalog could hold of it.
_TRACES = """
SELECT md5(string_agg(found, ',' ORDER BY found)) FROM (
  SELECT c.oid::text || c.relname || c.relnatts
      || (SELECT count(*) FROM pg_trigger t WHERE t.tgrelid = c.oid) AS found
    FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname NOT LIKE 'pg\\_%'
  UNION ALL SELECT nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_temp%'
  UNION ALL SELECT typname FROM pg_type WHERE typtype = 'e'
  UNION ALL SELECT proname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE n.nspname = 'migration'
  UNION ALL SELECT md5(string_agg(u::text, ',' ORDER BY id)) FROM users u
  UNION ALL SELECT md5(string_agg(p::text, ',' ORDER BY id)) FROM projects p
) AS traces
"""


def test_a_plan_holds_against_a_run_and_changes_nothing(engine: Engine, settings: Settings) -> None:
    change(engine, "DROP TABLE users, gpt_subscriptions, projects")
    with engine.begin() as connection:
        sample.load(connection, 3_000)
    before = scalar(engine, _TRACES)
    found = plan.make(engine, settings, None, 1)
    assert scalar(engine, _TRACES) == before
    with spent(engine) as work:
        assert whole_run(engine, settings).state == "completed_with_quarantine"
    print(f"planned {found.statements} statements, sent {work.statements}")
    assert 0 < sum(stage.at_most for stage in found.stages) < found.seconds_at_most
    # Twenty pieces from random places, which may overlap; the first one is always there.
    assert found.rows == 3_000 and 100 <= found.sample <= 2_000
    grown = scalar(engine, "SELECT pg_total_relation_size('ai_tools')")
    assert grown < found.disk_bytes < 10 * grown
    assert {stage.name: stage.batches > 0 for stage in found.stages} == dict.fromkeys(
        (stage.name for stage in found.stages), True
    )


def test_ten_times_the_users_take_ten_times_the_bytes_and_the_time(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One rehearsal for all: how fast it is, is the machine's affair.
    rehearsed = rehearse(engine, settings, USERS)
    monkeypatch.setattr(plan, "rehearse", lambda *_: rehearsed)
    once, tenfold = (plan.make(engine, settings, users, 2) for users in (100_000, 1_000_000))
    assert tenfold.disk_bytes == pytest.approx(10 * once.disk_bytes, rel=0.01)
    paged = {stage.name: stage.at_most for stage in once.stages if stage.name in PAGED}
    for stage in tenfold.stages:
        if stage.name in paged:
            assert stage.at_most == pytest.approx(10 * paged[stage.name], rel=0.1)
    assert tenfold.seconds_at_least <= tenfold.seconds_at_most
    crowd = plan.make(engine, settings, 10_000, 500)
    assert crowd.gives_first.startswith("connections")


def test_a_dry_run_says_what_a_run_writes_and_changes_nothing(
    engine: Engine, settings: Settings
) -> None:
    before = scalar(engine, _TRACES)
    # The sample has pieces from random places: each of them could be the whole table.
    said, rehearsed = dry_run.run(engine, settings, 20 * USERS)
    assert scalar(engine, _TRACES) == before
    found = whole_run(engine, settings)
    assert (said.rows, said.amounts) == (found.rows, found.amounts)
    migrated = {name: row.migrated for name, row in found.entities.items()}
    assert {name: row.migrated for name, row in said.entities.items()} == migrated
    # It takes users with what belongs to them, and so no row without an owner.
    del found.quarantine["owner_missing"]
    assert said.quarantine == found.quarantine and said.quarantine
    assert (said.differences, rehearsed.refused) == ({}, 0)
    assert (said.run_id, said.state) == (None, None)


def test_a_rehearsal_beside_an_open_run_is_refused(engine: Engine, settings: Settings) -> None:
    run_id = start(engine, settings)
    with pytest.raises(NotAllowed, match=run_id):
        plan.make(engine, settings, None, 2)
    control.cancel(engine, run_id)
    assert plan.make(engine, settings, None, 2).sample > 0


def test_a_rehearsal_between_two_runs_disturbs_neither(
    engine: Engine, settings: Settings, finished: RunReport
) -> None:
    before = scalar(engine, _TRACES)
    plan.make(engine, settings, None, 2)
    assert scalar(engine, _TRACES) == before
    again = go_on(engine, settings, start(engine, settings))
    assert again.rows["ai_tools"] == 0 and again.exit_status == 3


def test_a_rehearsal_that_fails_halfway_leaves_nothing(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = scalar(engine, _TRACES)

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Contract, "apply", fail)
    with pytest.raises(KeyboardInterrupt):
        plan.make(engine, settings, None, 2)
    assert scalar(engine, _TRACES) == before
