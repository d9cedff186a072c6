"""What users of --json rely on: the keys of a run's report, in their order."""

from __future__ import annotations

import pytest

from models.reports.plan import Plan
from models.reports.run import RunReport

_STANDING = '{"total":0,"migrated":0,"quarantined":0}'
DASHBOARD = (
    '{"run_id":null,"state":null,"throttled":false,"throttled_by":null,"paused_by":null,'
    f'"paused_at":null,"selection":null,"users":{_STANDING},"subscriptions":{_STANDING},'
    f'"projects":{_STANDING},'
    '"rows":{"ai_suites":0,"ai_tools":0,"tool_assignments":0,"tool_usage_logs":0},'
    '"credits_granted":"0.00","verification":{"state":"pending","rows_checked":0,"differences":0,'
    '"waiting_for_retry":0},"reconciliation":{"state":"pending","users_checked":0,'
    '"discrepancies":0},"stages":[],"quarantine":{},"differences":{},"failures":{},"conflicts":{},'
    '"seconds":0.0,"users_per_second":0.0,"progress":0.0,"eta_seconds":null,"time_left":null,'
    '"live":null,"error":null}'
)


def test_the_dashboards_report_has_the_keys_that_it_always_had() -> None:
    assert RunReport().model_dump_json() == DASHBOARD


def test_a_plan_names_the_rows_that_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def named() -> list[str]:
        return list(Plan(rows=7).model_dump())[:3]

    assert named() == ["users", "workers", "sample"]
    monkeypatch.setenv("MIGRATION", "tests.outside.accounts:MIGRATION")
    assert named() == ["accounts", "workers", "sample"]


def test_another_migrations_report_has_its_own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIGRATION", "tests.outside.badges:MIGRATION")
    found = RunReport().model_dump()
    assert found["badges"] == {"total": 0, "migrated": 0, "quarantined": 0}
    assert found["rows"] == {"awards": 0}
    assert not {"users", "credits_granted", "members"} & found.keys()
    # Members are parents only: nothing of theirs is migrated.
    assert (found["badges_per_second"], found["reconciliation"]["badges_checked"]) == (0, 0)


def test_a_migration_that_cannot_be_loaded_is_reported_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MIGRATION", "nobody:MIGRATION")
    assert RunReport().model_dump()["rows"] == {}
