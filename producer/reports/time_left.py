"""How much of a run is done, and how long the rest will take: a range, since workers die.

Rows are weighted by what one costs in its stage, so that the share that is done keeps pace with the
clock, and a stage that is still to come has an estimate before its first batch. Time is that which
batches took, not that which went by: a stage that waited for a dead worker's lease is no slower.
"""

from __future__ import annotations

from statistics import fmean

from models.engine import current
from models.engine.step import Step
from models.ledger.claims import LEASE_SECONDS
from models.ledger.tables import COMPLETED_STATES, FINISH, VERIFICATION
from models.reports.run import Live, Stage, TimeLeft, WorkerProcess

# Microseconds that a row takes in the verification, whatever the step, and in the finish.
_VERIFIED, _FINISH_A_ROW = 10, 30
# What a stage takes beside its rows, and the finish: publishing, waiting, small steps.
_STAGE_SECONDS, _FINISH_SECONDS = 0.3, 1.2
# What a dead worker's batch waits for: the end of its lease, and the reconciler's next round.
RECOVERY_SECONDS = LEASE_SECONDS + 3
# A lease is renewed at a third of it; one that is far beyond that belongs to nobody any more.
_SUSPECT_LEASE = LEASE_SECONDS * 0.55
# A worker that held no batch for so long does not count.
_IDLE_SECONDS = 15.0
# The share of a stage after which its own pace is known.
_KNOWN = 0.05


def progress(found: list[Stage], first: int, state: str) -> float:
    """The share of a run that is done, from 0 to 1; 1 when it is complete, and only then."""
    if state in COMPLETED_STATES or state == "rolled_back":
        return 1.0
    costs = [(stage, _cost(stage, first)) for stage in found]
    total = sum(cost for _, cost in costs)
    done = sum(
        cost if stage.state == "done" else cost * stage.rows / (stage.rows_total or 1)
        for stage, cost in costs
    )
    return round(min(0.999, done / total), 4) if total else 0.0


def left(found: list[Stage], first: int, live: Live) -> TimeLeft | None:
    """Seconds until the end; None before anything is done, and when nothing is left to do."""
    worked = [stage for stage in found if stage.rows and stage.busy_seconds]
    rest = [stage for stage in found if stage.state != "done"]
    if not worked or not rest:
        return None
    # How much slower this run goes than the weights say.
    slowness = 1e6 * sum(s.busy_seconds for s in worked) / sum(_weight(s) * s.rows for s in worked)
    workers = max(1, sum(_is_at_work(hand) for hand in live.hands))
    known = unknown = fixed = 0.0
    for stage in rest:
        if stage.name == FINISH:
            whole = _FINISH_SECONDS + _FINISH_A_ROW * first * slowness / workers / 1e6
            unknown += max(0.3, whole - stage.seconds)
            continue
        fixed += _STAGE_SECONDS
        rows = stage.rows_total - stage.rows
        if stage in worked and stage.rows >= _KNOWN * stage.rows_total:
            known += rows * stage.busy_seconds / stage.rows / workers
        else:
            unknown += rows * _weight(stage) * slowness / workers / 1e6
    # The stage does not end before the leases of those who died.
    stalled = max((max(0.0, hand.lease_seconds or 0) for hand in live.hands if _is_dead(hand)),
                  default=0.0)  # fmt: skip
    again = RECOVERY_SECONDS if live.recovery else 0.0
    # The first batches are small, and their rows dear: what is unknown is rather too high.
    return TimeLeft(
        at_least=round(0.8 * known + 0.4 * unknown + stalled, 1),
        likely=round(1.1 * known + 0.8 * unknown + fixed + stalled, 1),
        # A worker may die with a batch, and where that happened it may happen again.
        at_most=round(
            1.4 * known + 2 * unknown + 2 * fixed + stalled + RECOVERY_SECONDS + again, 1
        ),
    )


def _is_dead(hand: WorkerProcess) -> bool:
    return hand.lease_seconds is not None and hand.lease_seconds < _SUSPECT_LEASE


def _is_at_work(hand: WorkerProcess) -> bool:
    """Whether a worker takes part: it holds a batch, or finished one a moment ago."""
    return not _is_dead(hand) and (hand.batch_id is not None or hand.seconds < _IDLE_SECONDS)


def _cost(stage: Stage, first: int) -> float:
    """Microseconds that a whole stage takes: what each takes, and its rows by their weights."""
    if stage.name == FINISH:
        return 1e6 * _FINISH_SECONDS + _FINISH_A_ROW * first
    return 1e6 * _STAGE_SECONDS + _weight(stage) * stage.rows_total


def _weight(stage: Stage) -> float:
    """Microseconds that a row takes in a stage, by all steps that page through it.

    The mean of those that page through rows of their own, and what the others add.
    """
    if stage.name == VERIFICATION:
        return _VERIFIED
    steps = current.migration().steps_of(stage.name)
    paged = [step for step in steps if step.entity and not step.takes_lists]
    own = [step.weight for step in paged if step.is_counted]
    return fmean(own or [Step.weight]) + sum(s.weight for s in paged if not s.is_counted)
