"""How much of a run is done, and how long the rest will take: a range, since workers die.

Rows are weighted by what one costs in its stage, so that the share that is done keeps pace with the
clock, and a stage that is still to come has an estimate before its first batch.
"""

from __future__ import annotations

from models.claims import LEASE_SECONDS
from models.ledger import COMPLETED_STATES, FINISH, RECONCILIATION, VERIFICATION
from models.messages import Live, Stage, TimeLeft

# Microseconds a row with two workers on two cores (docs/performance.md); what counts is how they
# stand to each other, a run's own pace takes their place.
WEIGHTS = {"users": 14, "projects": 25, "switch": 10, VERIFICATION: 8, RECONCILIATION: 23}
_OTHER, _FINISH_A_USER = 15, 20
# What a stage takes beside its rows, and the finish: publishing, waiting, small steps.
_STAGE_SECONDS, _FINISH_SECONDS = 0.3, 1.0
# What a dead worker's batch waits for: the end of its lease, and the reconciler's next round.
RECOVERY_SECONDS = LEASE_SECONDS + 3
# A lease is renewed at a third of it; one that is far beyond that belongs to nobody any more.
_SUSPECT_LEASE = LEASE_SECONDS * 0.55
_LOW, _HIGH = 0.7, 1.5


def progress(found: list[Stage], users: int, state: str) -> float:
    """The share of a run that is done, from 0 to 1; 1 when it is complete, and only then."""
    if state in COMPLETED_STATES or state == "rolled_back":
        return 1.0
    costs = [(stage, _cost(stage, users)) for stage in found]
    total = sum(cost for _, cost in costs)
    done = sum(
        cost if stage.state == "done" else _weight(stage) * stage.rows for stage, cost in costs
    )
    return round(min(0.999, done / total), 4) if total else 0.0


def left(found: list[Stage], users: int, live: Live) -> TimeLeft | None:
    """Seconds until the end; None before anything is done, and while nothing is left to do."""
    worked = [stage for stage in found if stage.rows and stage.seconds]
    # How much slower than the table of weights this run goes, dead workers included.
    spent = sum(stage.seconds for stage in worked)
    slowness = 1e6 * spent / sum(_weight(s) * s.rows for s in worked) if worked else 0.0
    if not slowness or all(stage.state == "done" for stage in found):
        return None
    seconds = {stage.name: _seconds(stage, users, slowness) for stage in found}
    # The two checks go on side by side.
    checks = [seconds.pop(name, 0.0) for name in (VERIFICATION, RECONCILIATION)]
    likely = sum(seconds.values()) + max(checks)
    at_risk = [
        hand.lease_seconds
        for hand in live.hands
        if hand.lease_seconds is not None and hand.lease_seconds < _SUSPECT_LEASE
    ]
    stalled = max(0.0, *at_risk) if at_risk else 0.0
    return TimeLeft(
        at_least=round(max(_LOW * likely, stalled), 1),
        likely=round(max(likely, stalled), 1),
        # Whoever holds a batch may die with it.
        at_most=round(_HIGH * likely + stalled + RECOVERY_SECONDS, 1),
    )


def _seconds(stage: Stage, users: int, slowness: float) -> float:
    """What one stage still takes."""
    if stage.state == "done":
        return 0.0
    if stage.name == FINISH:
        whole = _FINISH_SECONDS + _FINISH_A_USER * users * slowness / 1e6
        return max(0.2, whole - stage.seconds)
    begun = stage.rows > 0 and stage.seconds > 0
    a_row = stage.seconds / stage.rows if begun else _weight(stage) * slowness / 1e6
    return (stage.rows_total - stage.rows) * a_row + _STAGE_SECONDS


def _cost(stage: Stage, users: int) -> float:
    """Microseconds that a whole stage takes, by the table of weights."""
    if stage.name == FINISH:
        return 1e6 * _FINISH_SECONDS + _FINISH_A_USER * users
    return _weight(stage) * max(1, stage.rows_total)


def _weight(stage: Stage) -> float:
    return WEIGHTS.get(stage.name, _OTHER)
