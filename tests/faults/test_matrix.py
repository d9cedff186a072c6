"""The quick rows of the crash matrix, once each, side by side; `make faults` runs all of it."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.matrix import ROWS
from tests.faults.repetition import repeat
from tests.faults.verdict import Verdict, is_surplus
from tests.faults.world import Lane
from tests.nursery import Nursery

LANES = 4
ROOT = Path(__file__).parents[2]
QUICK = {row.name: row for row in ROWS if row.is_quick}
# In `make test`: each kind of harm once. The others are in `make test-all`.
FIRST = (
    "child killed after COMMIT",
    "two producers",
    "messages twice",
    "chord keys deleted",
    "Redis killed, data kept",
    "deadlock",
)


@pytest.fixture(scope="module")
def verdicts(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Verdict]]]:
    """The verdicts of the rows that were chosen, all under way."""
    chosen = [
        item.callspec.params["name"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.module is request.module
        if hasattr(item, "callspec") and "name" in item.callspec.params
    ]
    home = tmp_path_factory.mktemp("faults")
    free: queue.SimpleQueue[Lane] = queue.SimpleQueue()

    def play(name: str) -> Verdict:
        lane = free.get()
        try:
            return repeat(QUICK[name], 0, lane, is_short=True)
        finally:
            free.put(lane)

    with ExitStack() as stack:
        nursery = Nursery(ROOT)
        stack.callback(nursery.close)
        pool = stack.enter_context(ThreadPoolExecutor(LANES))
        for lane in pool.map(lambda n: Lane(home / f"lane-{n}", nursery), range(LANES)):
            stack.callback(lane.close)
            free.put(lane)
        # After the lanes' removal on the stack, hence before it in time.
        stack.callback(lambda: pool.shutdown(cancel_futures=True))
        yield {name: pool.submit(play, name) for name in chosen}


@pytest.mark.parametrize(
    "name",
    [name if name in FIRST else pytest.param(name, marks=pytest.mark.long) for name in QUICK],
)
def test_a_run_ends_right_after(name: str, verdicts: dict[str, Future[Verdict]]) -> None:
    verdict = verdicts[name].result()
    assert verdict.findings == []
    assert (verdict.lost, verdict.doubled, verdict.stuck) == (0, 0, 0)


@pytest.mark.parametrize(
    ("difference", "surplus"),
    [
        ("ai_tools: missing ['u', 'gpt']", False),
        ("ai_tools: not expected ['u', 'gpt']", True),
        ("new suites of user u: 2, expected 1", True),
        ("new suites of user u: 0, expected 1", False),
        ("users u credits_balance: 2e2, expected 1e2", True),
        ("users u user_type: None, expected 'student'", False),
        ("suites that user u must not have: []", True),
    ],
)
def test_a_surplus_is_told_from_a_loss(difference: str, surplus: bool) -> None:
    assert is_surplus(difference) is surplus
