"""The report is one file that tells a run from its outcome to its settings, and leaks nothing."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from sqlalchemy import Engine

from models.ledger import audit
from models.postgres.database import name_of, transaction
from models.settings import Settings
from producer.reports import history, html
from producer.runs import control, reconciler
from tests.driving import change, go_on, scalar, start

USERS = 120


@pytest.fixture
def run_id(engine: Engine, settings: Settings) -> str:
    """A run that was paused and resumed, lost a lease, and ended with quarantined rows."""
    run_id = start(engine, settings)
    control.pause(engine, run_id)
    control.resume(engine, settings, run_id)
    change(
        engine,
        "UPDATE migration.batches SET state = 'running', attempt = 1, worker = 'dead/1',"
        " lease_until = now() - interval '1 second' WHERE state = 'pending'",
    )
    reconciler.tick(engine, settings)
    go_on(engine, settings, run_id)
    return run_id


def page(engine: Engine, settings: Settings) -> str:
    return html.render(history.read(engine, settings, None))


def test_it_tells_everything_that_the_ledger_knows(
    engine: Engine, settings: Settings, run_id: str
) -> None:
    found = history.read(engine, settings, run_id)
    text = html.render(found)
    said = " ".join(re.sub(r"<[^>]*>", " ", text).split())
    assert name_of(engine) in said
    assert found.report.quarantine
    for reason in found.reasons:
        assert reason.keys and all(key in said for key in reason.keys)
        assert f"{reason.name.replace('_', ' ')}: {reason.rows}" in said
    assert {event.what for event in found.events if event.kind == "action"} >= {"pause", "resume"}
    assert any("leases expired" in event.what for event in found.events)
    assert [event.at for event in found.events] == sorted(event.at for event in found.events)
    done = [stage.name for stage in found.report.stages]
    assert [row.stage for row in found.durations] == done
    for part in (run_id, "nothing differs", "*=100, admin=1000", "PostgreSQL", "lag=10"):
        assert part in said, part


def test_the_sums_of_the_plot_are_the_rows_of_the_stages(
    engine: Engine, settings: Settings, run_id: str
) -> None:
    found = history.read(engine, settings, run_id)
    by_stage = {stage.name: stage.rows for stage in found.report.stages if stage.rows}
    drawn = {name: round(sum(r) * found.pace.width) for name, r in found.pace.rates.items()}
    assert drawn == by_stage


def test_the_plot_leaves_out_the_hour_of_a_pause(
    engine: Engine, settings: Settings, run_id: str
) -> None:
    paused = "(SELECT at FROM migration.events WHERE state = 'paused')"
    later = "+ interval '1 hour'"
    change(
        engine,
        # Without the trigger that lets events only be added.
        "SET LOCAL session_replication_role = replica",
        f"UPDATE migration.batches SET finished_at = finished_at {later}"
        f" WHERE finished_at > {paused}",
        f"UPDATE migration.runs SET finished_at = finished_at {later}",
        f"UPDATE migration.events SET at = at {later} WHERE at > {paused}",
    )
    pace = history.read(engine, settings, run_id).pace
    assert pace.width * max(map(len, pace.rates.values())) < 3600


def test_credits_are_told_by_type_of_user_and_a_wrong_balance_shows(
    engine: Engine, settings: Settings, run_id: str
) -> None:
    found = history.read(engine, settings, run_id)
    assert found.summary
    *_, (_, users, granted, logged, balances) = found.summary.rows
    assert users == scalar(engine, "SELECT count(*) FROM users")
    assert granted == found.report.amounts["credits_granted"] > 0
    assert (logged, found.summary.wrong) == (balances, ())
    change(
        engine,
        "UPDATE users SET credits_balance = credits_balance + 1 WHERE id ="
        " (SELECT min(id) FROM users WHERE user_type = 'teacher')",
    )
    again = history.read(engine, settings, run_id)
    assert again.summary
    assert [again.summary.rows[n][0] for n in again.summary.wrong] == ["teacher", "all"]
    assert 'class="n bad"' in html.render(again)


def test_it_needs_nothing_but_itself_and_no_id_is_there_twice(
    engine: Engine, settings: Settings, run_id: str
) -> None:
    text = page(engine, settings)
    assert not re.search(r"[a-z]+://", text)
    assert not re.search(r"<(script|link|img|iframe)|@import|src=", text)
    ids = Counter(re.findall(r' id="([^"]*)"', text))
    assert [name for name, count in ids.items() if count > 1] == []
    assert text.count('<svg class="plot') == 2


def test_no_address_of_a_user_is_in_it_and_what_looks_like_html_is_text(
    engine: Engine, settings: Settings, run_id: str
) -> None:
    with transaction(engine) as connection:
        audit.note(connection, "<script>alert(1)</script>", run_id)
    text = page(engine, settings)
    emails = scalar(engine, "SELECT array_agg(email) FROM users WHERE email LIKE '%@%'")
    assert len(emails) > USERS / 2
    assert [email for email in emails if email in text] == []
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_differences_are_told_by_kind_and_one_by_one(engine: Engine, settings: Settings) -> None:
    spoilt: list[str] = []

    def spoil(stage: str) -> None:
        if stage == "verification" and not spoilt:
            spoilt.append(stage)
            change(engine, "DELETE FROM tool_usage_logs WHERE id IN"
                   " (SELECT id FROM tool_usage_logs ORDER BY id LIMIT 2)")  # fmt: skip

    found = go_on(engine, settings, start(engine, settings), before=spoil)
    assert found.state == "failed"
    text = page(engine, settings)
    assert len(history.read(engine, settings, None).differences) == 2
    assert "tool usage logs" in text and "The first of them" in text
    assert "The run failed" in text


def test_a_run_that_wrote_nothing_has_a_report_too(engine: Engine, settings: Settings) -> None:
    start(engine, settings)
    assert "is being prepared" in page(engine, settings)
    control.cancel(engine, None)
    assert "was cancelled" in page(engine, settings)


def test_it_is_written_below_the_home_again_and_again(
    engine: Engine, settings: Settings, run_id: str
) -> None:
    first = html.write(engine, settings, None, None)
    assert first == settings.home.absolute() / "reports" / f"{run_id}.html"
    assert html.write(engine, settings, None, None) == first
    assert first.read_text(encoding="utf-8").startswith("<!doctype html>")
