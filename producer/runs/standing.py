"""Which runs still have rows in the database, and so what a rollback has left to undo."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection

from models.errors import NotAllowed
from models.ledger.tables import OPEN_STATES, SCHEMA, before_images, conflicts, runs

# What a run created is counted by its batches; what it changed has an image from before.
_CREATED = """EXISTS (
  SELECT FROM migration.batches b, jsonb_each_text(b.counts -> 'rows') AS c
  WHERE b.run_id = migration.runs.id AND c.value::numeric > 0)"""
_USERS = """(
  SELECT count(*) FROM migration.before_images i
  WHERE i.run_id = migration.runs.id AND i.entity = 'user')"""


@dataclass(frozen=True)
class Standing:
    """A run that a rollback has to consider, and how many users it changed."""

    id: str
    state: str
    wrote: bool
    kept: bool
    is_forgotten: bool
    users: int

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
    query = (
        sa.select(
            runs.c.id,
            runs.c.state,
            sa.or_(changed, sa.text(_CREATED)).label("wrote"),
            kept.label("kept"),
            runs.c.forgotten_at.is_not(None).label("is_forgotten"),
            sa.literal_column(_USERS).label("users"),
        )
        .where(sa.or_(runs.c.state != "rolled_back", kept))
        .order_by(runs.c.id.desc())
    )
    return [Standing(**row._mapping) for row in connection.execute(query)]


def with_rows(connection: Connection) -> list[Standing]:
    """The runs whose rows are still in the database, newest first."""
    return [run for run in read(connection) if run.has_rows]


def require_none(connection: Connection) -> None:
    """Raise NotAllowed while a run is open, or the rows of one are still in the database."""
    for run in read(connection):
        if run.state in (*OPEN_STATES, "rolling_back"):
            raise NotAllowed(
                f"Run {run.id} is {run.state}", hint="Wait for its end: producer status --watch"
            )
        if run.has_rows:
            raise NotAllowed(
                f"Run {run.id} is not rolled back: its rows would be lost",
                hint="Roll it back first: producer rollback --wait",
            )
