"""Twenty runs of different sizes under different kills: does the time left cover the truth?"""

from __future__ import annotations

import itertools
import random
import time
from contextlib import suppress
from typing import Any

import psutil
from sqlalchemy import Engine

from models.errors import UnknownRun
from producer.reports import status
from tests.soak.chaos import _victim
from tests.soak.site import Site, finish, load, workers

RUNS, SMALLEST, MOST_KILLS = 20, 5_000, 3


def run(site: Site, users: int) -> dict[str, Any]:
    """Runs of `SMALLEST` to `users` users; a moment of each, drawn by chance, is judged."""
    dice = random.Random(20)
    runs = [_once(site, dice, users) for _ in range(RUNS)]
    return {
        "runs": RUNS,
        "covered": sum(found["covered"] for found in runs),
        "share_of_all_moments_covered": round(
            sum(found["moments_covered"] for found in runs) / sum(f["moments"] for f in runs), 3
        ),
        "progress_went_back": sum(found["went_back"] for found in runs),
        "most_progress": max(found["most_progress"] for found in runs),
        "each": runs,
    }


def _once(site: Site, dice: random.Random, most: int) -> dict[str, Any]:
    """One run, looked at all the time; some workers are killed at moments drawn beforehand."""
    users = dice.randrange(SMALLEST, max(SMALLEST, most) + 1)
    due = sorted(dice.uniform(0.5, 3 + users / 2000) for _ in range(dice.randint(0, MOST_KILLS)))
    engine = site.fresh("eta")
    load(engine, users)
    seen: list[tuple[float, Any]] = []
    shares: list[float] = []
    kills: list[float] = []
    with workers(site, 2) as running:
        producer = site.producer("enqueue-all", "--wait", "--json")
        begun: list[float] = []

        def watch() -> None:
            found = _look(engine)
            now = time.monotonic()
            if found is None:
                return
            shares.append(found.progress)
            if found.time_left:
                seen.append((now, found.time_left))
                begun.append(now)
            if begun and due and now - begun[0] >= due[0]:
                due.pop(0)
                number = dice.randrange(len(running))
                victim = _victim(running[number], dice)
                if victim is not None:
                    victim.kill()
                    psutil.wait_procs([victim], timeout=5)
                    kills.append(round(now - begun[0], 1))
                if not running[number].is_running():
                    running[number] = site.worker(number)

        ended = finish(producer, watch)
        end = time.monotonic()
    shares.append(status.read(engine, None).progress)
    engine.dispose()
    moment, judged = dice.choice(seen)
    covered = [left.at_least <= end - at <= left.at_most for at, left in seen]
    return {
        "users": users,
        "exit_status": ended["exit_status"],
        "seconds": round(end - begun[0], 1),
        "kills": kills,
        "stages": {s["name"]: [s["seconds"], s["busy_seconds"]] for s in ended["stages"]},
        "left": round(end - moment, 1),
        "said": [judged.at_least, judged.at_most],
        "covered": judged.at_least <= end - moment <= judged.at_most,
        "moments": len(seen),
        "moments_covered": sum(covered),
        "said_over_time": [
            (round(end - at, 1), left.at_least, left.likely, left.at_most)
            for at, left in seen[:: max(1, len(seen) // 12)]
        ],
        "went_back": sum(later < earlier for earlier, later in itertools.pairwise(shares)),
        "most_progress": max(shares),
    }


def _look(engine: Engine) -> Any:
    """The report of the newest run; None before there is one."""
    with suppress(UnknownRun):
        return status.read(engine, None)
    return None
