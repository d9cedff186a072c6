"""Cutting a legacy table into batches: keyset pages, never OFFSET, and the size of a page."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sqlalchemy import Connection, text

from models.catalog import Table
from models.legacy import key_cast

TARGET_SECONDS = 2.0
FIRST_ROWS, SMALLEST_ROWS, LARGEST_ROWS = 1_000, 50, 20_000
FIRST_WINDOW, LARGEST_WINDOW = 4, 256
# No batch is more than this part of what is left for each worker, so that none ends long before
# the others; nor is it cut so small for that that its message costs more than a few percent.
SHARES, SHORTEST_SECONDS = 8, 0.2
EXACT_COUNT_LIMIT = 1_000_000


@dataclass(frozen=True)
class Size:
    """How large the next window is: rows a batch, and batches."""

    rows: int
    pages: int


@dataclass(frozen=True)
class Page:
    """A range of keys, low exclusive and high inclusive, and how many rows it held when cut."""

    low: str | None
    high: str | None
    rows: int


def cut(
    connection: Connection, table: Table, *, after: str | None, rows: int, pages: int
) -> list[Page]:
    """The next pages of `table` in key order, at most `pages` of `rows` rows.

    The page behind the last row is open above: its `high` is None, and nothing comes after it.
    Reads the unique index on `id` only, one window of keys at a time.
    """
    kind = key_cast(table.columns["id"].base)
    bound = "" if after is None else f"WHERE t.id > CAST(:after AS {kind})"
    statement = text(
        "SELECT id::text AS high, position FROM ("
        "  SELECT id, row_number() OVER (ORDER BY id) AS position,"
        "    lead(true) OVER (ORDER BY id) IS NULL AS is_last"
        f"  FROM (SELECT t.id FROM {table.sql} t {bound} ORDER BY t.id LIMIT :most) AS page"
        ") AS numbered WHERE position % :rows = 0 OR is_last ORDER BY position"
    )
    most = rows * pages
    cuts = connection.execute(statement, {"after": after, "rows": rows, "most": most}).all()
    result: list[Page] = []
    position, low = 0, after
    for found in cuts:
        result.append(Page(low, found.high, found.position - position))
        position, low = found.position, found.high
    if not result:
        return [Page(after, None, 0)]
    if position < most:
        result[-1] = replace(result[-1], high=None)
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


def share(rows_left: int, workers: int, rows_a_second: float) -> int:
    """The most rows that a batch may have, so that all workers are done at about the same time.

    Fixed-size chunking with SHARES chunks a worker (Kruskal and Weiss, Allocating independent
    subtasks on parallel processors, 1985): the last batch costs 1 / (2 · SHARES) of the time.
    """
    shortest = max(FIRST_ROWS, int(SHORTEST_SECONDS * rows_a_second))
    return max(shortest, rows_left // (SHARES * max(1, workers)))


def count_rows(connection: Connection, table: Table) -> int:
    """Rows of a table: counted, or the planner's estimate where that says over a million."""
    estimate = connection.scalar(
        text("SELECT reltuples::bigint FROM pg_class WHERE oid = :oid"), {"oid": table.oid}
    )
    if estimate and estimate > EXACT_COUNT_LIMIT:
        return int(estimate)
    return int(connection.scalar(text(f"SELECT count(*) FROM {table.sql}")) or 0)
