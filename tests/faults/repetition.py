"""One repetition of a row: a site, the play, the verdict; what went wrong is kept to look at."""

from __future__ import annotations

import shutil
import time
import traceback

from tests.faults.matrix import Row
from tests.faults.site import Site
from tests.faults.standing import standing
from tests.faults.verdict import Verdict, judge
from tests.faults.world import Lane, NotInjected

ATTEMPTS = 3
"""How often a repetition is tried whose fault did not come about."""


def repeat(row: Row, repetition: int, lane: Lane, *, is_short: bool = False) -> Verdict:
    """Play a row once on a lane; raises NotInjected when its fault does not come about."""
    for attempt in range(ATTEMPTS):
        try:
            return _repeat(row, repetition, lane, is_short)
        except NotInjected:
            if attempt + 1 == ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def _repeat(row: Row, repetition: int, lane: Lane, is_short: bool) -> Verdict:
    with Site(lane, lane.home / "site", repetition, is_short) as site:
        try:
            verdict = judge(site, row.play(site))
        except NotInjected:
            _keep(row, repetition, lane, f"{standing(site)}\n{traceback.format_exc()}")
            raise
    if not verdict.is_right or (verdict.restarts and not row.kills_workers):
        what = [f"{verdict.restarts} restarts", *verdict.findings]
        _keep(row, repetition, lane, "\n".join(what))
    return verdict


def _keep(row: Row, repetition: int, lane: Lane, what: str) -> None:
    """Keep the logs of a repetition that went wrong, beside the lanes."""
    name = f"{row.name} {repetition} {time.strftime('%H%M%S')}".replace(" ", "-")
    target = lane.home.parent / "evidence" / name
    sockets = shutil.ignore_patterns("*.sock")
    shutil.copytree(lane.home / "site", target, dirs_exist_ok=True, ignore=sockets)
    (target / "what").write_text(f"{what}\n")
