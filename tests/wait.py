"""Waiting until something holds, the one way in which tests wait."""

from __future__ import annotations

import time
from collections.abc import Callable

# Nothing takes so long that works, on a machine that is busy with other things too.
PATIENCE_SECONDS = 120.0
LOOK_SECONDS = 0.05


def comes(condition: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> bool:
    """Whether the condition comes to hold within that time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(LOOK_SECONDS)
    return True


def until(
    condition: Callable[[], object],
    what: Callable[[], str] | str = "the condition never held",
    seconds: float = PATIENCE_SECONDS,
) -> None:
    """Wait until the condition holds; fails after `seconds`, with `what` as its words."""
    assert comes(condition, seconds), what if isinstance(what, str) else what()
