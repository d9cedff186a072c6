"""The live view says what goes on in 80 columns without colour, and in lines when it is piped."""

from __future__ import annotations

import io

from rich.console import Console

from models.reports.run import Batches, Live, Recovery, RunReport, Stage, TimeLeft, WorkerProcess
from producer.reports import live_view, time_left


def a_report(**more: object) -> RunReport:
    """A run in the middle of its users, with everything that there is to show."""
    values: dict[str, object] = {
        "run_id": "20261122-221104-752c",
        "state": "running",
        "progress": 0.28,
        "throttled_by": "archive: 70 segments wait, the limit is 64",
        "stages": [
            Stage(name="organization", state="done", batches=Batches(total=4, done=4)),
            Stage(name="users", state="running", rows=3_400_000, rows_total=12_004_500,
                  seconds=400.0, rows_per_second=9_100.0,
                  batches=Batches(total=135, done=120, running=2, pending=12, failed=1)),
            Stage(name="reconciliation", rows_total=3_000_000),
        ],
        "quarantine": {f"reason_number_{n}": n for n in range(1, 10)},
        "time_left": TimeLeft(at_least=1900, likely=2000, at_most=2900),
        "live": Live(
            hands=[
                WorkerProcess(worker="worker-1.example/1234", batches=70, stage="users",
                     batch_id=133, attempt=2, seconds=3.0, lease_seconds=-1.0),
                WorkerProcess(worker="worker-2.example/99", batches=50),
                *(WorkerProcess(worker=f"w/{n}") for n in range(20)),
            ],
            recovery=Recovery(kind="expired", batches=3, seconds_ago=12),
        ),
    }  # fmt: skip
    return RunReport(**(values | more))  # type: ignore[arg-type]


def printed(*reports: RunReport, width: int = 80, terminal: bool = True) -> str:
    console = Console(file=io.StringIO(), width=width, no_color=True, force_terminal=terminal)
    before = None
    for found in reports:
        if terminal:
            console.print(live_view.screen(found))
        else:
            live_view.news(console, found, before)
        before = found
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_the_view_holds_everything_in_eighty_columns_without_colour() -> None:
    text = printed(a_report())
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80
    said = " ".join(text.split())
    for part in (
        "running, 28 % done, 32 to 48 min left",
        "3,400,000/12,004,500 28 % running 9,100/s, 8,500 avg",
        "124 done, 2 running, 12 waiting, 1 failed",
        "9 reason_number_9",
        "6 more",
        "users, batch 133, attempt 2, 3 s, its lease expired; 70 done",
        "worker-2.example/99 waits for work",
        "and 14 more",
        "archive: 70 segments wait",
        "3 batches whose worker died or froze given to others, 12 s ago",
    ):
        assert part in said, part


def test_a_bar_can_be_read_without_colour() -> None:
    (users,) = (line for line in printed(a_report()).splitlines() if line.startswith("users"))
    assert 2 <= users.count("━") + users.count("╸") <= 3


def test_in_a_pipe_a_line_comes_when_something_changed_and_no_other() -> None:
    first = a_report(throttled_by=None, live=Live())
    same = first.model_copy(update={"progress": 0.285})
    further = first.model_copy(update={"progress": 0.31})
    slow = further.model_copy(update={"throttled_by": "lag"})
    lines = printed(first, same, further, slow, slow, further, terminal=False).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "Run 20261122-221104-752c is running, 28 % done, 32 to 48 min left",
        "Run 20261122-221104-752c is running, 31 % done, 32 to 48 min left",
        "Throttled",
        "No longer throttled",
    ]
    assert lines[0].endswith("users, 9,100 rows/s")


def test_a_word_of_the_reconciler_comes_once_in_a_pipe() -> None:
    def at(seconds: float | None) -> RunReport:
        recovery = seconds and Recovery(kind="lost", batches=1, seconds_ago=seconds)
        return a_report(throttled_by=None, live=Live(recovery=recovery or None))

    text = printed(at(None), at(1), at(3), at(0.5), terminal=False)
    assert text.count("Reconciler: 1 batch whose message was lost sent again") == 2


def test_time_left_is_said_in_the_unit_that_fits() -> None:
    def said(low: float, high: float) -> str:
        return live_view.span(TimeLeft(at_least=low, likely=low, at_most=high))

    assert said(20, 50) == "20 to 50 s"
    assert said(20, 20.2) == "20 s"
    assert said(170, 400) == "3 to 7 min"
    assert said(5000, 8000) == "1.4 to 2.2 h"


def test_a_lease_that_nobody_renews_is_waited_for() -> None:
    stages = [
        Stage(
            name="users", state="running", rows=900, rows_total=1000, seconds=9.0, busy_seconds=9.0
        ),
        Stage(name="finish"),
    ]
    healthy = Live(hands=[WorkerProcess(worker="a/1", batch_id=1, lease_seconds=15.0)])
    dead = Live(hands=[WorkerProcess(worker="a/1", batch_id=1, lease_seconds=10.5)])
    calm, stalled = (time_left.left(stages, 100, live) for live in (healthy, dead))
    assert calm and stalled
    assert calm.at_least < 2 < calm.likely < 5 < 10.5 < stalled.at_least
    assert calm.at_most < stalled.at_most


def test_a_stage_that_works_and_has_no_rows_is_no_matter_of_pace() -> None:
    stages = [
        Stage(name="loosen", state="running", seconds=1.0, busy_seconds=1.0),
        Stage(name="undo_users", state="running", rows=1, rows_total=10, busy_seconds=1.0),
    ]
    found = time_left.left(stages, 10, Live())
    assert found and found.likely > 9


def test_a_stage_has_the_weight_of_the_steps_that_page_through_rows() -> None:
    def share(done: str, left: str) -> float:
        # So many that only the rows count.
        rows = 10**9
        stages = [
            Stage(name=done, state="done", rows_total=rows),
            Stage(name=left, rows_total=rows),
        ]
        return time_left.progress(stages, 0, "running")

    # Two steps page through the users, whose rows count once.
    assert share("users", "projects") == round(48 / (48 + 30), 4)
    assert share("switch", "verification") == round(17 / (17 + 10), 4)
    assert share("reconciliation", "undo_users") == round(10 / (10 + 25), 4)


def test_a_small_run_that_has_only_its_last_stage_left_is_half_done() -> None:
    names = ("organization", "users", "projects", "switch", "verification", "reconciliation")
    stages = [Stage(name=name, state="done", rows=10, rows_total=10) for name in names]
    assert time_left.progress([*stages, Stage(name="finish")], 10, "running") > 0.5


def test_progress_is_whole_when_the_run_is_complete_and_only_then() -> None:
    stages = [Stage(name="users", state="done", rows=10, rows_total=10), Stage(name="finish")]
    assert 0.0 < time_left.progress(stages, 10, "running") < 0.999
    over = [Stage(name="users", state="running", rows=12, rows_total=12)]
    assert time_left.progress(over, 10, "running") == 0.999
    assert time_left.progress(stages, 10, "completed") == 1.0
    assert time_left.progress([], 0, "running") == 0.0
