"""A thousand short runs under a shaken schedule: `python -m tests.soak shake --runs N`."""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Any

import structlog

from tests.soak.site import Site

RUNS = 1_000


def run(site: Site, runs: int, first: int = 0) -> dict[str, Any]:
    """Seeds from `first` on, a fresh copy of one small school each; every fault with its seed."""
    school = site.fresh("school")
    os.environ.update(site.environment)
    # Imported when the settings lead to the site's servers: else it would start some of its own.
    from models.settings import load
    from tests import shaking

    # A line a batch would bury the seeds that failed.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    settings = load().model_copy(update={"batch_size": shaking.ROWS_A_BATCH})
    before = shaking.build(school, settings)
    school.dispose()
    faults: dict[int, list[str]] = {}
    started = time.monotonic()
    for seed in range(first, first + runs):
        if seed % 10 == 0:
            print(f"seed {seed}", file=sys.stderr, flush=True)
        site.fresh("shaken", template="school").dispose()
        address = site.address("shaken")
        if found := shaking.shake(address, settings, before, seed, longest=shaking.LONGEST):
            faults[seed] = found[:5]
            print(f"seed {seed}: {found[:5]}", file=sys.stderr, flush=True)
    seconds = time.monotonic() - started
    return {"runs": runs, "first_seed": first, "seconds": round(seconds), "faults": faults}
