"""The long lists of the ledger, a page at a time: searched, sorted, and whole for a CSV file.

A page begins behind the last row of the one before it (a keyset), so that the last page costs as
little as the first, and rows that come or go meanwhile shift nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from models.ledger.tables import SCHEMA, audit, differences, quarantine, runs
from models.postgres.database import transaction

PAGE_ROWS, CSV_PAGE_ROWS, MOST_CHOICES = 50, 5_000, 30


@dataclass(frozen=True)
class Listing:
    """A list: its shown columns, those that it is filtered by, and what tells its rows apart."""

    columns: Mapping[str, sa.Column[Any]]
    filters: tuple[str, ...]
    # May hold null, which has no place in an order.
    unsorted: tuple[str, ...]
    unique: tuple[sa.Column[Any], ...]
    which: tuple[sa.ColumnElement[bool], ...] = ()

    @property
    def sorts(self) -> list[str]:
        """The columns that it can be sorted by."""
        return [name for name in self.columns if name not in self.unsorted]

    def order(self, sort: str) -> list[sa.Column[Any]]:
        """What a page is ordered by; the keys of a row, where `sort` is empty."""
        first = [self.columns[sort]] if sort else []
        return list(dict.fromkeys([*first, *self.unique]))


QUARANTINE = Listing(
    {
        "entity": quarantine.c.entity,
        "key": quarantine.c.legacy_key,
        "reason": quarantine.c.reason,
        "message": quarantine.c.message,
        "attempts": quarantine.c.attempts,
        "state": quarantine.c.state,
    },
    filters=("reason", "entity", "state"),
    unsorted=("message",),
    unique=(quarantine.c.entity, quarantine.c.legacy_key),
    which=(quarantine.c.state.in_(("open", "accepted")),),
)
DIFFERENCES = Listing(
    {
        "stage": differences.c.stage,
        "kind": differences.c.kind,
        "entity": differences.c.entity,
        "key": differences.c.legacy_key,
        "table": differences.c.target_table,
        "detail": differences.c.detail,
    },
    filters=("stage", "kind", "entity", "table"),
    unsorted=("detail",),
    unique=(differences.c.id,),
)


@dataclass(frozen=True)
class Query:
    """Which rows, in which order, and behind which one; as somebody asked for them."""

    search: str = ""
    filters: Mapping[str, str] = field(default_factory=dict)
    sort: str = ""
    is_descending: bool = False
    after: tuple[Any, ...] | None = None


@dataclass(frozen=True)
class Page:
    """Rows by column, how many there are in all, and behind what the next page begins."""

    rows: list[dict[str, Any]]
    total: int
    after: tuple[Any, ...] | None
    # What the filters offer, by column.
    choices: dict[str, list[str]]


def page(engine: Engine, listing: Listing, run_id: str, query: Query) -> Page:
    """One page of a run's list."""
    with transaction(engine) as connection:
        rows, after = _read(connection, listing, run_id, query, PAGE_ROWS)
        total = connection.scalar(sa.select(sa.func.count()).where(*_where(listing, run_id, query)))
        choices = {
            name: [
                *connection.scalars(
                    sa.select(listing.columns[name])
                    .where(*_where(listing, run_id, Query()))
                    .distinct()
                    .order_by(listing.columns[name])
                    .limit(MOST_CHOICES)
                )
            ]
            for name in listing.filters
        }
    return Page(rows, total or 0, after, choices)


def every(engine: Engine, listing: Listing, run_id: str, query: Query) -> Iterator[dict[str, Any]]:
    """All rows that a query finds, read page by page: no transaction is open between two pages."""
    after: tuple[Any, ...] | None = ()
    while after is not None:
        with transaction(engine) as connection:
            rows, after = _read(
                connection, listing, run_id, replace(query, after=after or None), CSV_PAGE_ROWS
            )
        yield from rows


def _where(listing: Listing, run_id: str, query: Query) -> list[sa.ColumnElement[bool]]:
    columns = listing.columns
    found = [columns["key"].table.c.run_id == run_id, *listing.which]
    found += [columns[name] == value for name, value in query.filters.items()]
    if query.search:
        found.append(columns["key"].icontains(query.search, autoescape=True))
    return found


def _read(
    connection: Connection, listing: Listing, run_id: str, query: Query, rows: int
) -> tuple[list[dict[str, Any]], tuple[Any, ...] | None]:
    order = listing.order(query.sort)
    shown = [column.label(name) for name, column in listing.columns.items()]
    place = [column.label(f"place_{number}") for number, column in enumerate(order)]
    wanted = sa.select(*shown, *place).where(*_where(listing, run_id, query))
    if query.after is not None:
        here = sa.tuple_(*order)
        behind = sa.tuple_(*map(sa.literal, query.after))
        wanted = wanted.where(here < behind if query.is_descending else here > behind)
    direction = sa.desc if query.is_descending else sa.asc
    found = connection.execute(wanted.order_by(*map(direction, order)).limit(rows + 1)).all()
    is_last = len(found) <= rows
    last = None if is_last else tuple(found[rows - 1][len(shown) :])
    names = list(listing.columns)
    return [dict(zip(names, row, strict=False)) for row in found[:rows]], last


def runs_page(engine: Engine, before: str | None) -> list[dict[str, Any]]:
    """The newest runs, or the newest older than one: who opened them, when, and for how long.

    One more than PAGE_ROWS where there are older ones; no run where there is no ledger yet.
    """
    opened_by = (
        sa.select(audit.c.actor)
        .where(audit.c.run_id == runs.c.id, audit.c.action == "enqueue-all")
        .order_by(audit.c.id)
        .limit(1)
        .scalar_subquery()
    )
    end = sa.func.coalesce(runs.c.finished_at, sa.func.clock_timestamp())
    with transaction(engine) as connection:
        if not connection.scalar(sa.select(sa.func.to_regclass(f"{SCHEMA}.runs"))):
            return []
        wanted = sa.select(
            *(runs.c.id, runs.c.state, runs.c.created_at, runs.c.finished_at),
            *(runs.c.paused_by, runs.c.paused_at),
            sa.extract("epoch", end - runs.c.created_at).label("seconds"),
            opened_by.label("opened_by"),
        )
        if before is not None:
            wanted = wanted.where(runs.c.id < before)
        found = connection.execute(wanted.order_by(runs.c.id.desc()).limit(PAGE_ROWS + 1))
        return [dict(row._mapping) for row in found]
