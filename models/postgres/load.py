"""The database's own signals of strain, and which of them is beyond its limit.

https://www.postgresql.org/docs/current/monitoring-stats.html says what each of them means, and what
a role without `pg_monitor` may not see. A signal that is not there (no standby, no archive) is no
strain; one that cannot be read counts as the setting says.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, replace

from sqlalchemy import Connection, text

# What each limit counts: seconds, segments of WAL, sessions, seconds, seconds, a share from 0 to 1.
SIGNALS = ("lag", "archive", "locks", "commit", "transaction", "connections")
_SAID = {
    "lag": ("replication lag", "{:.1f} s"),
    "archive": ("WAL to archive", "{:.0f} segments"),
    "locks": ("sessions waiting for locks", "{:.0f}"),
    "commit": ("commit latency", "{:.2f} s"),
    "transaction": ("the oldest transaction of others", "{:.0f} s"),
    "connections": ("connections in use", "{:.0%}"),
}

# Which sessions others have is hidden from an ordinary role, and so is how far standbys are; that
# somebody waits for a lock is not. Idle sessions of our own are left out: workers keep them between
# batches, so that waiting would never free them and the throttle would never open again.
_READ = text(r"""
SELECT pg_current_wal_flush_lsn() - '0/0' AS written,
  s.standbys, s.replayed - '0/0' AS replayed, s.reported, s.are_hidden,
  current_setting('archive_mode') <> 'off' AS archives,
  (SELECT (pg_current_wal_flush_lsn() - '0/0') / w.size - a.log * (4294967296 / w.size) - a.segment
   FROM (SELECT ('x' || substr(last_archived_wal, 9, 8))::bit(32)::bigint AS log,
       ('x' || substr(last_archived_wal, 17, 8))::bit(32)::bigint AS segment
     FROM pg_stat_archiver WHERE last_archived_wal ~ '^[0-9A-F]{24}') AS a,
     (SELECT setting::bigint AS size FROM pg_settings WHERE name = 'wal_segment_size') AS w
  ) AS archive,
  (SELECT count(DISTINCT l.pid) FROM pg_locks l WHERE NOT l.granted AND l.pid NOT IN (
     SELECT a.pid FROM pg_stat_activity a WHERE a.application_name = :ours)) AS locks,
  o.oldest AS transaction, o.are_hidden AS sessions_are_hidden,
  ((SELECT sum(numbackends) FROM pg_stat_database) - (SELECT count(*) FROM pg_stat_activity a
     WHERE a.application_name = :ours AND a.state = 'idle'))::float
    / current_setting('max_connections')::int AS connections
FROM (
  SELECT count(*) AS standbys, min(replay_lsn) AS replayed,
    extract(epoch FROM max(replay_lag))::float AS reported,
    coalesce(bool_or(state IS NULL), false) AS are_hidden
  FROM pg_stat_replication WHERE state IS NULL OR state IN ('streaming', 'catchup')
) AS s, (
  SELECT extract(epoch FROM clock_timestamp() - min(xact_start))::float AS oldest,
    coalesce(bool_or(query = '<insufficient privilege>'), false) AS are_hidden
  FROM pg_stat_activity
  WHERE application_name IS DISTINCT FROM :ours AND pid <> pg_backend_pid()
    AND (backend_type = 'client backend' OR backend_type IS NULL)
) AS o
""")


@dataclass(frozen=True)
class Limits:
    """What each signal may be; None: that signal is not looked at.

    The units are those of SIGNALS. `stops_unread` says what a signal that cannot be read means.
    """

    lag: float | None = 10.0
    archive: float | None = 64.0
    locks: float | None = 20.0
    commit: float | None = 1.0
    transaction: float | None = 3600.0
    connections: float | None = 0.9
    stops_unread: bool = False

    @property
    def is_off(self) -> bool:
        """Whether nothing is looked at."""
        return all(getattr(self, name) is None for name in SIGNALS)


def parse_limits(text: str) -> Limits:
    """Parse `signal=limit,…`: `off` for a limit, or for all; `unreadable=go|stop` beside them.

    Raises ValueError for an unknown signal, or a limit that is no positive number.
    """
    limits = Limits()
    if text.strip() == "off":
        return Limits(**dict.fromkeys(SIGNALS, None))  # type: ignore[arg-type]
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name == "unreadable":
            if value not in ("go", "stop"):
                raise ValueError("unreadable: must be go or stop")
            limits = replace(limits, stops_unread=value == "stop")
            continue
        if name not in SIGNALS:
            raise ValueError(
                f"{name!r} is not a signal: there are {', '.join(SIGNALS)} and unreadable"
            )
        try:
            limit = None if value == "off" else float(value)
        except ValueError:
            raise ValueError(f"{name}={value}: must be a number, or off") from None
        if limit is not None and not 0 < limit < float("inf"):
            raise ValueError(f"{name}={value}: must be more than 0")
        limits = replace(limits, **{name: limit})  # type: ignore[arg-type]
    return limits


class Gauge:
    """Reads the signals; keeps what one look alone does not tell: when which WAL was written.

    A standby that stands still reports the lag of the last commit that it replayed, or none.
    """

    def __init__(self, application: str = "migration") -> None:
        self._application = application
        # When the WAL had grown this far: (monotonic seconds, position).
        self._written: deque[tuple[float, int]] = deque(maxlen=4096)

    def read(self, connection: Connection) -> dict[str, float | None]:
        """The signals that are there, by name; None: cannot be read. Without `commit`."""
        row = connection.execute(_READ, {"ours": self._application}).one()
        found: dict[str, float | None] = {
            "locks": float(row.locks),
            "connections": float(row.connections),
        }
        if row.standbys:
            lag = self._lag(int(row.written), row.replayed, float(row.reported or 0))
            found["lag"] = None if row.are_hidden else lag
        if row.archives:
            found["archive"] = None if row.archive is None else float(row.archive)
        found["transaction"] = None if row.sessions_are_hidden else float(row.transaction or 0)
        return found

    def _lag(self, written: int, replayed: int | None, reported: float) -> float:
        """Seconds since the first WAL that the slowest standby has not replayed was written."""
        now = time.monotonic()
        self._written.append((now, written))
        while replayed is not None and self._written and self._written[0][1] <= replayed:
            self._written.popleft()
        return max(now - self._written[0][0], reported) if self._written else 0.0


def excess(found: dict[str, float | None], limits: Limits) -> str | None:
    """The first signal beyond its limit, in words; None where all is well."""
    for name, (said, form) in _SAID.items():
        limit = getattr(limits, name)
        if limit is None or name not in found:
            continue
        value = found[name]
        if value is None:
            if limits.stops_unread:
                return f"{said} cannot be read"
        elif value > limit:
            return f"{said} {form.format(value)} (limit {form.format(limit)})".replace("%", " %")
    return None
