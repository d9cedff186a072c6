"""Which runs still have rows in the database, and so what a rollback has left to undo."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection

from models.engine import current
from models.errors import NotAllowed
from models.ledger.tables import (
    OPEN_STATES,
    SCHEMA,
    before_images,
    conflicts,
    created_rows,
    runs,
)

LET_IT_END = (
    "Wait for its end: producer status --watch. If it is paused: producer resume, or cancel."
)
# What a run created is counted by its batches; what it changed has an image from before.
_CREATED = """EXISTS (
  SELECT FROM migration.batches b, jsonb_each_text(b.counts -> 'rows') AS c
  WHERE b.run_id = migration.runs.id AND c.value::numeric > 0)"""


@dataclass(frozen=True)
class Standing:
    """A run that a rollback has to consider, and how many rows it changed."""

    id: str
    state: str
    wrote: bool
    kept: bool
    is_forgotten: bool
    rows: int

    @property
    def has_rows(self) -> bool:
        """True while the database holds rows of this run that a rollback would undo."""
        return self.wrote and self.state != "rolled_back"


def read(connection: Connection) -> list[Standing]:
    """Every run that is not rolled back, or that kept conflicts then; newest first."""
    if not connection.scalar(sa.select(sa.func.to_regclass(f"{SCHEMA}.runs"))):
        return []
    changed = sa.exists().where(before_images.c.run_id == runs.c.id)
    kept = sa.exists().where(conflicts.c.run_id == runs.c.id)
    of_first = before_images.c.entity == current.migration().first
    images = _count(before_images, of_first)
    created = _count(created_rows)
    query = (
        sa.select(
            runs.c.id,
            runs.c.state,
            sa.or_(changed, sa.text(_CREATED)).label("wrote"),
            kept.label("kept"),
            runs.c.forgotten_at.is_not(None).label("is_forgotten"),
            (images + created).label("rows"),
        )
        .where(sa.or_(runs.c.state != "rolled_back", kept))
        .order_by(runs.c.id.desc())
    )
    return [Standing(**row._mapping) for row in connection.execute(query)]


def _count(table: sa.Table, *which: sa.ColumnElement[bool]) -> sa.ScalarSelect[int]:
    """The rows of a table that are a run's."""
    found = sa.select(sa.func.count()).select_from(table).where(table.c.run_id == runs.c.id, *which)
    return found.correlate(runs).scalar_subquery()


def with_rows(connection: Connection) -> list[Standing]:
    """The runs whose rows are still in the database, newest first."""
    return [run for run in read(connection) if run.has_rows]


def require_none(connection: Connection) -> None:
    """Raise NotAllowed while a run is open, or the rows of one are still in the database."""
    for run in read(connection):
        if run.state in (*OPEN_STATES, "rolling_back"):
            raise NotAllowed(f"Run {run.id} is {run.state}", hint=LET_IT_END)
        if run.has_rows:
            raise NotAllowed(
                f"Run {run.id} is not rolled back: its rows would be lost",
                hint="Roll it back first: producer rollback --wait",
            )
