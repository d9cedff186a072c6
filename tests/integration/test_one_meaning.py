"""A figure, or what to do next, is the same wherever it is shown, after whatever was done."""

from __future__ import annotations

import io
import re

import pytest
from flask.testing import FlaskClient
from rich.console import Console
from sqlalchemy import Engine

from models.errors import NotAllowed
from models.reports.run import RunReport
from models.settings import Settings
from producer.broker.snapshot import Broker
from producer.console import app
from producer.console.login import Passwords
from producer.doctor import findings, symptoms
from producer.reports import history, html, status, terminal
from producer.runs import advance, control, rollback
from tests.driving import change, go_on, scalar, whole_run
from tests.integration.test_console import LOOPBACK, PASSWORD, log_in
from tests.integration.test_metrics import scrape

USERS, BATCH_SIZE = 40, 40
ACTIVE = """
SELECT sum(extract(epoch FROM e.at - b.at)) FROM migration.events e
JOIN LATERAL (SELECT p.at, p.state FROM migration.events p
  WHERE p.run_id = e.run_id AND p.kind = 'run' AND p.id < e.id ORDER BY p.id DESC LIMIT 1) b ON true
WHERE e.kind = 'run' AND b.state IN ('running', 'rolling_back') AND e.run_id = '{}'
"""


@pytest.fixture
def console(engine: Engine, settings: Settings) -> FlaskClient:
    client = app.create(engine, settings, Passwords(PASSWORD), hosts=LOOPBACK).test_client()
    log_in(client)
    return client


def text_of(page: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


def agree(engine: Engine, settings: Settings, console: FlaskClient, found: RunReport) -> None:
    """Check each place that shows the newest run, and the figures against each other."""
    said = found.model_dump(mode="json")
    seen = scrape(engine)
    record = history.read(engine, settings, found.run_id)
    assert record.report.model_dump(mode="json") == said
    screen = io.StringIO()
    terminal.summary(Console(file=screen, width=200), found)
    if seen.get(("migration_run_info", str(found.run_id), str(found.state))):
        assert seen["migration_run_seconds",] == found.seconds
        for name, count in found.rows.items():
            assert seen["migration_rows_written", name] == count
        assert seen["migration_discrepancies", "verification"] == found.verification.differences
        checked = found.reconciliation.discrepancies
        assert seen["migration_discrepancies", "reconciliation"] == checked
    for name, row in found.entities.items():
        table = f"gpt_{name}" if name == "subscriptions" else name
        assert row.total == scalar(engine, f"SELECT count(*) FROM {table}")
        assert f"{name} {row.total} {row.migrated} {row.quarantined}" in " ".join(
            screen.getvalue().split()
        )
    for page in (html.render(record), console.get(f"/runs/{found.run_id}").text):
        assert html.sentence(found) in text_of(page)
    # No row is counted twice, none less than never.
    assert all(count >= 0 for count in found.rows.values())
    for stage in found.stages:
        if stage.name in ("users", "projects", "switch", "reconciliation", "undo_users"):
            entity = "projects" if stage.name in ("projects", "switch") else "users"
            assert stage.rows <= found.entities[entity].total, stage
    both = found.verification.differences + found.reconciliation.discrepancies
    assert both >= sum(found.differences.values()) and bool(both) == bool(found.differences)
    assert found.exit_status != 3 or not found.differences


@pytest.mark.long
def test_every_place_says_the_same_after_each_kind_of_run(
    engine: Engine, settings: Settings, finished: RunReport, console: FlaskClient
) -> None:
    agree(engine, settings, console, finished)
    again = whole_run(engine, settings)
    agree(engine, settings, console, again)
    assert (again.entities, set(again.rows.values())) == (finished.entities, {0})
    change(engine, "UPDATE gpt_subscriptions SET preferences = '{}'")
    run_id = control.retry(engine, settings, None)
    retried = go_on(engine, settings, run_id)
    agree(engine, settings, console, retried)
    assert retried.rows["ai_tools"] > 0
    change(
        engine,
        "DELETE FROM tool_assignments WHERE tool_id = (SELECT min(tool_id) FROM tool_assignments)",
        "UPDATE users SET credits_balance = credits_balance + 50 WHERE id = (SELECT min(id)"
        " FROM users WHERE user_type IS NOT NULL)",
    )
    for what in ("verification", "reconciliation", "retry", "reconciliation", "verification"):
        if what == "retry":
            control.retry(engine, settings, run_id)
        else:
            control.check_again(engine, settings, run_id, what)
        agree(engine, settings, console, go_on(engine, settings, run_id))
    for force in (False, True):
        for target in rollback.targets(engine, None, force=force):
            undone = rollback.start(engine, settings, target.id, force=force)
            agree(engine, settings, console, go_on(engine, settings, undone))
    ended = go_on(engine, settings, str(finished.run_id))
    assert (ended.conflicts, set(ended.rows.values())) == ({}, {0})
    assert (ended.verification.rows_checked, ended.per_second) == (0, 0)


@pytest.mark.long
def test_a_run_takes_the_time_in_which_it_was_worked_on(engine: Engine, settings: Settings) -> None:
    """Pauses, and what lies between an end and a retry, are no time of it or of its stages."""

    def pause(stage: str) -> None:
        if stage == "projects" and not scalar(engine, paused):
            run_id = scalar(engine, "SELECT max(id) FROM migration.runs")
            control.pause(engine, run_id)
            change(engine, "SELECT pg_sleep(1)")
            control.resume(engine, settings, run_id)

    paused = "SELECT count(*) FROM migration.events WHERE state = 'paused'"
    found = whole_run(engine, settings, before=pause)
    change(engine, "SELECT pg_sleep(1)", "UPDATE gpt_subscriptions SET preferences = '{}'")
    ended = go_on(engine, settings, control.retry(engine, settings, found.run_id))
    run = f"FROM migration.runs WHERE id = '{found.run_id}'"
    all_in_all = float(scalar(engine, f"SELECT extract(epoch FROM finished_at - started_at) {run}"))
    assert scalar(engine, paused) == 1
    assert found.seconds < ended.seconds <= all_in_all - 2
    assert ended.per_second == round(ended.first[1].migrated / ended.seconds, 1)
    assert ended.seconds >= float(scalar(engine, ACTIVE.format(found.run_id)))
    shown = {stage.name: stage.seconds for stage in ended.stages}
    assert all(seconds <= ended.seconds for seconds in shown.values()), shown


def hints(engine: Engine, run_id: str) -> list[str]:
    """What the doctor, the status and its screen say to do next."""
    with engine.connect() as connection:
        ledger = symptoms.ledger(connection, run_id)
    seen = findings.Seen(ledger, ledger, Broker(), [], "", {})
    report = status.read(engine, run_id)
    screen = io.StringIO()
    terminal.summary(Console(file=screen, width=200), report)
    said = [each.hint for each in findings.of(seen) if "failed" in each.kind]
    return [*said, report.error.hint if report.error else "", screen.getvalue().splitlines()[-1]]


def test_a_failed_rollback_names_the_command_that_continues_it(
    engine: Engine, settings: Settings, finished: RunReport
) -> None:
    run_id = rollback.start(engine, settings, finished.run_id, force=False)
    advance.advance(engine, settings, run_id)
    change(engine, "UPDATE migration.batches SET state = 'failed' WHERE state = 'pending'")
    assert hints(engine, run_id)[0].endswith("; then: producer rollback --wait")
    advance.advance(engine, settings, run_id)
    assert status.read(engine, run_id).state == "failed"
    ended = hints(engine, run_id)
    assert len(ended) == 3
    assert [hint.partition("then: ")[2] for hint in ended] == ["producer rollback --wait"] * 3
    # The other one refuses.
    with pytest.raises(NotAllowed, match="its rollback has begun"):
        control.retry(engine, settings, run_id)
    rollback.start(engine, settings, run_id, force=False)
    assert go_on(engine, settings, run_id).state == "rolled_back"
