"""Servers that are away: which errors time may heal, in which words, and how often that is said.

Waiting commands keep their patience with it, and logs say a cause once instead of a thousand times.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from models.errors import Transient
from producer.broker.refusals import is_of_redis, of_redis

T = TypeVar("T")
# A cause is said at once, then a minute later with its count, then after two more, four more, …
FIRST_SECONDS, LONGEST_SECONDS = 60.0, 600.0
TRY_AGAIN_SECONDS = 1.0


def cause(failure: BaseException) -> str | None:
    """Why a server cannot be used now; None for an error that waiting does not heal."""
    if is_of_redis(failure) or isinstance(failure, OSError):
        return f"Redis cannot be used now: {of_redis(failure)}"
    # Most commands that fail never came so far.
    from sqlalchemy.exc import DBAPIError

    from models.postgres.database import classify

    if isinstance(failure, DBAPIError):
        error = classify(failure)
        if isinstance(error, Transient):
            return f"The database cannot be used now: {error.message}"
    return None


@dataclass
class _Said:
    next_at: float
    pause: float = FIRST_SECONDS
    unsaid: int = 0
    seen_at: float = 0.0


class Repeats:
    """When something that happens again and again is to be said; any thread may ask."""

    def __init__(self) -> None:
        self._said: dict[str, _Said] = {}
        self._lock = threading.Lock()

    def unsaid(self, what: str) -> int | None:
        """How often it happened since it was last said; None: do not say it again yet.

        What has not happened for as long as it would be silent counts as new.
        """
        now = time.monotonic()
        with self._lock:
            said = self._said.get(what)
            if said is None or now - said.seen_at > said.pause:
                self._said[what] = _Said(now + FIRST_SECONDS, seen_at=now)
                return 0
            said.seen_at = now
            said.unsaid += 1
            if now < said.next_at:
                return None
            said.pause = min(2 * said.pause, LONGEST_SECONDS)
            said.next_at = now + said.pause
            unsaid, said.unsaid = said.unsaid, 0
            return unsaid

    def forget(self) -> None:
        """Whatever happens next is new."""
        with self._lock:
            self._said.clear()


class Patience:
    """Lets what a waiting command does fail while a server is away, and says so."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._repeats = Repeats()
        self._since: float | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Swallow the errors that waiting may heal; any other is raised."""
        try:
            yield
        except Exception as failure:
            why = cause(failure)
            if why is None:
                raise
            self._failed(why)
        else:
            self._succeeded()

    def until_done(self, action: Callable[[], T]) -> T:
        """Do what may be done twice, again and again while a server is away."""
        results: list[T] = []
        while not results:
            with self():
                results.append(action())
            if not results:
                time.sleep(TRY_AGAIN_SECONDS)
        return results[0]

    def _failed(self, why: str) -> None:
        if self._since is None:
            self._since = time.monotonic()
        unsaid = self._repeats.unsaid(why)
        if unsaid is not None:
            since = f", for {time.monotonic() - self._since:.0f} s now" if unsaid else ""
            self._say(f"{why}; waiting for it{since}")

    def _succeeded(self) -> None:
        if self._since is not None:
            self._say(f"It answers again, after {time.monotonic() - self._since:.0f} s")
            self._since = None
            self._repeats.forget()
