"""Rules of the engine that need no server: sizes, states, stages, sums, what an error means."""

from __future__ import annotations

from dataclasses import replace

import psycopg2
import pytest
from sqlalchemy.exc import DBAPIError

from models.dashboard.users.apply import Users
from models.engine import current
from models.engine.declarations import require_declared
from models.engine.step import Context, Step, add
from models.errors import BadRow, Incompatible, Misconfigured, TooBig, Transient
from models.ledger.tables import FINISHED_STATES, OPEN_STATES, RUN_TRANSITIONS
from models.postgres.database import classify, require_version
from models.reports.run import Reconciliation, RunReport, Verification
from producer.runs.partition import (
    FIRST_ROWS,
    LARGEST_ROWS,
    SMALLEST_ROWS,
    Pace,
    next_rows,
    share,
    window_pages,
)

DASHBOARD = current.migration()


def test_the_stages_are_those_of_the_interface_in_order() -> None:
    assert list(DASHBOARD.stages) == [
        "organization",
        "users",
        "projects",
        "switch",
        "verification",
        "reconciliation",
        "finish",
    ]


def test_verification_and_reconciliation_stand_side_by_side_before_the_finish() -> None:
    positions = [DASHBOARD.stages[n] for n in ("verification", "reconciliation", "finish")]
    assert positions == [4, 4, 5]


def test_every_step_that_writes_rows_of_a_table_is_verified() -> None:
    verified = {step.name for step in DASHBOARD.steps_of("verification")}
    writing = {
        step.name for step in DASHBOARD.steps if step.stage in ("users", "projects", "switch")
    }
    assert writing - verified == {
        "switch",
        "changed_users",
        "changed_projects",
        "indexes",
        "removed",
    }


class Whole(Users):
    """All that a step must say it inherits."""

    name = "whole"


class Unverified(Whole):
    is_verified = False


class Unchecked(Step):
    name, stage, queue, entity = "unchecked", "users", "migration.users", "badge"
    is_verified, irreversible = True, "nothing undoes it"


class Kept(Whole):
    undone_by = ""


class Unknown(Whole):
    undone_by = "undo_nothing"


class Listed(Whole):
    def key_lists(self, context: Context, round_: int) -> list[list[str]] | None:
        return None


@pytest.mark.parametrize(
    ("step", "what"),
    [
        (Unverified, "how they are verified"),
        (Unchecked, "override differences or details"),
        (Kept, "how they are undone"),
        (Unknown, "no such name"),
        (Listed, "say takes_lists = True"),
    ],
)
def test_a_step_that_leaves_something_out_is_refused_with_what_to_write(
    step: type[Step], what: str
) -> None:
    with pytest.raises(Misconfigured, match=what) as refused:
        require_declared([step()], DASHBOARD.undo_steps)
    assert step.__name__ in refused.value.hint


def test_a_step_inherits_how_it_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [*DASHBOARD.steps, Whole()]
    monkeypatch.setattr(DASHBOARD, "steps", steps)
    DASHBOARD.require_declared()
    assert "whole" in {step.name for step in DASHBOARD.steps_of("verification")}


def test_every_open_state_leads_to_an_end_and_every_end_back_or_to_a_rollback() -> None:
    for state in OPEN_STATES:
        assert any(start == state for start, _ in RUN_TRANSITIONS)
    for state in FINISHED_STATES:
        assert ((state, "running") in RUN_TRANSITIONS) == (state != "rolled_back")
        assert (state, "rolling_back") in RUN_TRANSITIONS


def test_a_batch_size_moves_towards_its_target_by_at_most_eight() -> None:
    assert next_rows(500, 2.0) == 500
    assert next_rows(500, 1.0) == 1000
    assert next_rows(500, 0.01) == 4000
    assert next_rows(500, 100) == 125
    assert next_rows(60, 100) == SMALLEST_ROWS
    assert next_rows(LARGEST_ROWS, 0) == LARGEST_ROWS


def test_windows_grow_to_a_bound_that_no_number_of_users_moves() -> None:
    sizes = [window_pages(window) for window in (0, 1, 2, 5, 6, 100_000)]
    assert sizes == [4, 8, 16, 128, 256, 256]


def test_a_batch_is_a_share_of_what_is_left_but_worth_its_message() -> None:
    pace = Pace(rows=10_000, seconds=1.0, workers=2, pause=0.01)
    assert share(160_000, pace) == 10_000
    # Five batches of 2,000 would keep one of the two waiting for the last.
    assert share(10_000, pace) == 1_667
    assert share(10_000, replace(pace, rows=100)) == FIRST_ROWS
    # Far from the servers, where 50 ms pass between two batches, they have 0.8 s of work.
    assert share(80_000, replace(pace, pause=0.05)) == 8_000


def test_counts_add_up_by_name_with_money_to_the_cent() -> None:
    first = {"users": {"total": 2}, "rows": {"ai_tools": 1}, "credits_granted": "0.10"}
    second = {"users": {"total": 3, "quarantined": 1}, "credits_granted": "0.20"}
    assert add(first, second) == {
        "users": {"total": 5, "quarantined": 1},
        "rows": {"ai_tools": 1},
        "credits_granted": "0.30",
    }


@pytest.mark.parametrize(
    ("code", "branch"),
    [
        ("40P01", Transient),
        ("40001", Transient),
        ("55P03", Transient),
        ("08006", Transient),
        ("57014", TooBig),
        ("53200", TooBig),
        ("22003", BadRow),
        ("23505", BadRow),
        ("P0001", BadRow),
        ("42703", Misconfigured),
        ("42501", Misconfigured),
    ],
)
def test_an_error_says_what_to_do_about_it(code: str, branch: type[Exception]) -> None:
    error = psycopg2.errors.lookup(code)("a value of the application")
    assert psycopg2.errors.lookup(code) is type(error)
    error.__setstate__({"pgcode": code})
    found = classify(DBAPIError("SELECT", {}, error))
    assert type(found) is branch
    if branch is not Misconfigured:
        assert "application" not in found.message


def test_postgresql_older_than_12_is_refused() -> None:
    require_version(120000)
    with pytest.raises(Incompatible, match="PostgreSQL 11 is too old"):
        require_version(110022)


@pytest.mark.parametrize(
    ("state", "differences", "discrepancies", "status"),
    [
        ("running", 0, 0, 0),
        ("paused", 0, 0, 0),
        ("completed", 0, 0, 0),
        ("completed_with_quarantine", 0, 0, 3),
        ("failed", 0, 0, 1),
        ("failed", 1, 0, 4),
        ("failed", 0, 1, 4),
        ("cancelled", 0, 0, 1),
    ],
)
def test_the_exit_status_follows_from_the_state(
    state: str, differences: int, discrepancies: int, status: int
) -> None:
    report = RunReport(
        state=state,
        verification=Verification(differences=differences),
        reconciliation=Reconciliation(discrepancies=discrepancies),
    )
    assert report.exit_status == status
