"""Cutting a legacy table into batches: each page begins behind the last; how large it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from models.engine.source import SourceTable
from models.postgres import sessions
from models.postgres.keys import key_cast

TARGET_SECONDS = 2.0
FIRST_ROWS, SMALLEST_ROWS, LARGEST_ROWS = 1_000, 50, 20_000
FIRST_WINDOW, LARGEST_WINDOW = 4, 256
# So many keys are read well within the time limit of a statement, also one by one from a slow disk.
KEYS_AT_ONCE = 100_000
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
SELECT ends[1]::text, ends[2] IS NULL FROM page ORDER BY number
"""
_HELD = "SELECT count(*) FROM (SELECT FROM {table} t WHERE {bound} ORDER BY {key} LIMIT :rows) AS p"
# The planner does not know how far a page is from the end, and might sort the table for each.
_BY_THE_INDEX = "SAVEPOINT cut; SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off"
_AS_BEFORE = "ROLLBACK TO SAVEPOINT cut; RELEASE SAVEPOINT cut"


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
    result: list[Page] = []

    def of_rest(statement: str, low: str | None, **values: int) -> Any:
        bound = "true" if low is None else f"{key} > CAST(:low AS {kind})"
        sql = statement.format(table=table.sql, key=key, bound=bound)
        return connection.execute(text(sql), {"low": low, **values})

    sessions.precede(connection, _BY_THE_INDEX)
    low = after
    is_cut = False
    while not is_cut and len(result) < pages:
        at_once = min(pages - len(result), max(1, KEYS_AT_ONCE // rows))
        for end, is_cut in of_rest(_ENDS, low, before=rows - 1, pages=at_once).all():
            held = rows if end is not None else of_rest(_HELD, low, rows=rows).scalar_one()
            result.append(Page(low, None if is_cut else end, held))
            low = end
    sessions.precede(connection, _AS_BEFORE)
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
