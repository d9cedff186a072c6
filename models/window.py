"""The hours in which batches may begin: MIGRATION_WINDOW."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from zoneinfo import ZoneInfo

# In the words of a worker that waits for a window: nobody needs to be told of that.
NEXT_BATCH = "the next batch begins"
_FORM = re.compile(r"(\d{1,2}:\d{2})-(\d{1,2}:\d{2})(?:\s+(\S+))?")


@dataclass(frozen=True)
class Window:
    """From `start` to `end`, its last minute not included, each day; across midnight if need be."""

    start: time
    end: time
    zone: ZoneInfo

    def __str__(self) -> str:
        return f"{self.start:%H:%M}-{self.end:%H:%M} {self.zone}"

    def opens_at(self, now: datetime) -> datetime | None:
        """When batches may begin again, in the window's zone; None while they may."""
        here = now.astimezone(self.zone)
        at = here.time()
        crosses_midnight = self.end < self.start
        after_start, before_end = at >= self.start, at < self.end
        if (after_start or before_end) if crosses_midnight else (after_start and before_end):
            return None
        day = here.date() + timedelta(days=int(after_start))
        return datetime.combine(day, self.start, self.zone)


def parse(text: str) -> Window | None:
    """Parse `22:00-06:00 Europe/Berlin`; without a zone it is UTC, "" is no window.

    Raises ValueError for another form, an hour that no day has, an unknown zone, or no duration.
    """
    if not text.strip():
        return None
    found = _FORM.fullmatch(text.strip())
    if not found:
        raise ValueError("must be written as 22:00-06:00 Europe/Berlin")
    try:
        start, end = (time.fromisoformat(part.zfill(5)) for part in found.groups()[:2])
    except ValueError:
        raise ValueError("hours go from 00:00 to 23:59") from None
    if start == end:
        raise ValueError("begins and ends at the same minute: leave it unset for all day")
    try:
        zone = ZoneInfo(found[3] or "UTC")
    except (ValueError, OSError, LookupError):
        raise ValueError(f"{found[3]} is not a time zone; one is Europe/Berlin") from None
    return Window(start, end, zone)
