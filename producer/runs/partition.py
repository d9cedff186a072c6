"""Cutting a legacy table into batches: each page begins behind the last; how large it is."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from models.engine.source import SourceTable
from models.postgres import sessions
from models.postgres.keys import key_cast

TARGET_SECONDS = 2.0
FIRST_ROWS, SMALLEST_ROWS, LARGEST_ROWS = 1_000, 50, 20_000
FIRST_WINDOW, LARGEST_WINDOW = 4, 256
# Where the pace is known, a window is as large as the one that comes so many later.
KNOWN_PACE = 2
# No batch is more than this part of what is left for each worker, so that none ends long before
# the others. But it has so many times the work of a pause between two batches of a worker, which is
# what it costs besides: a few percent.
SHARES, SHORTEST_SECONDS, PAUSES = 8, 0.2, 16

# The last row of each page, and whether there is one behind it.
_ENDS = """
WITH RECURSIVE page AS (
  SELECT 1 AS number,
    ARRAY(SELECT {key} FROM {table} t WHERE {bound} ORDER BY {key} OFFSET :before LIMIT 2) AS ends
  UNION ALL
  SELECT p.number + 1, ARRAY(
    SELECT {key} FROM {table} t WHERE {key} > p.ends[1] ORDER BY {key} OFFSET :before LIMIT 2)
  FROM page p WHERE p.number < :pages AND p.ends[2] IS NOT NULL
)
SELECT ends[1]::text AS high, ends[2] IS NULL AS is_last FROM page ORDER BY number
"""
# The planner does not know how far a page is from the end, and might sort the table for each.
_BY_THE_INDEX = "SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off"
_AS_BEFORE = "SET LOCAL enable_seqscan TO DEFAULT; SET LOCAL enable_sort TO DEFAULT"


@dataclass(frozen=True)
class Size:
    """How large the next window is: rows a batch, and batches."""

    rows: int
    pages: int


@dataclass(frozen=True)
class Pace:
    """What the last pages took: mean rows and seconds, how many workers did them.

    `pause` is the shortest time, in seconds, between one of them and the worker's batch before.
    """

    rows: int
    seconds: float
    workers: int
    pause: float


@dataclass(frozen=True)
class Page:
    """A range of keys, low exclusive and high inclusive, and how many rows it held when cut."""

    low: str | None
    high: str | None
    rows: int


def cut(
    connection: Connection, table: SourceTable, *, after: str | None, rows: int, pages: int
) -> list[Page]:
    """The next pages of `table` in key order, at most `pages` of `rows` rows.

    The page that holds the last row is open above: its `high` is None, and nothing comes after it.
    Reads the unique index on the key only, and of that the keys of these pages.
    """
    kind, key = key_cast(table.key.base), table.key_of("t")
    bound = "true" if after is None else f"{key} > CAST(:after AS {kind})"
    names = {"table": table.sql, "key": key, "bound": bound}
    values = {"after": after, "before": rows - 1, "pages": pages}
    sessions.precede(connection, _BY_THE_INDEX)
    ends = connection.execute(text(_ENDS.format(**names)), values).all()
    sessions.precede(connection, _AS_BEFORE)
    result: list[Page] = []
    for high, is_last in ends:
        low = result[-1].high if result else after
        result.append(Page(low, None if is_last else high, rows))
    if ends[-1].high is None:
        # The last page is not full.
        low = result[-1].low
        bound = "true" if low is None else f"{key} > CAST(:low AS {kind})"
        held = text(f"SELECT count(*) FROM {table.sql} t WHERE {bound}")
        result[-1] = Page(low, None, int(connection.scalar(held, {"low": low}) or 0))
    return result


def window_pages(window: int) -> int:
    """How many batches the window of this number holds: few at first, to learn their size."""
    return min(FIRST_WINDOW << min(window, 16), LARGEST_WINDOW)


def next_rows(rows: int, seconds: float) -> int:
    """The batch size that would have taken TARGET_SECONDS, given what `rows` rows took.

    rows · target / seconds, at most eight times and at least a quarter of what it was, as GitLab's
    batch optimizer moves towards its target range instead of jumping there
    (lib/gitlab/database/background_migration/batch_optimizer.rb).
    """
    factor = TARGET_SECONDS / max(seconds, 0.001)
    wanted = rows * min(8.0, max(0.25, factor))
    return int(min(LARGEST_ROWS, max(SMALLEST_ROWS, wanted)))


def share(rows_left: int, pace: Pace) -> int:
    """The most rows that a batch may have, so that all workers are done at about the same time.

    Fixed-size chunking with SHARES chunks a worker (Kruskal and Weiss, Allocating independent
    subtasks on parallel processors, 1985): the last batch costs 1 / (2 · SHARES) of the time.
    Where there are few, each worker has as many.
    """
    workers = max(1, pace.workers)
    seconds = max(SHORTEST_SECONDS, PAUSES * pace.pause)
    shortest = max(FIRST_ROWS, int(seconds * pace.rows / max(pace.seconds, 0.001)))
    most = min(LARGEST_ROWS, max(shortest, rows_left // (SHARES * workers)))
    rounds = -(-rows_left // (most * workers))
    return max(FIRST_ROWS, -(-rows_left // (rounds * workers)))
