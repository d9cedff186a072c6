"""The prefix of all keys and messages in Redis: it carries the identity of the ledger.

So environments that share a Redis never touch each other's. A process that knows no ledger, or
sees other tables than the open run's, has a prefix under which nobody publishes batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import sqlalchemy as sa
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from models.errors import MigrationError
from models.ledger import identity, relations
from models.ledger.tables import WORKED_ON, runs
from models.postgres.database import transaction
from models.settings import Settings
from producer import connect

ROOT = "migration:"
NO_LEDGER = f"{ROOT}no-ledger:"
_STRANGERS = "-other-tables"
LOOK_SECONDS = 2.0

_known: str | None = None
_looked = float("-inf")
_on_change: list[Callable[[str], None]] = []


def of(ledger_id: str, *, is_stranger: bool = False) -> str:
    """The prefix of a ledger, or that of workers which see other tables than its open run's."""
    return f"{ROOT}{ledger_id}{_STRANGERS if is_stranger else ''}:"


def is_strangers(found: str) -> bool:
    """Whether it is the prefix of workers that see other tables."""
    return found.endswith(f"{_STRANGERS}:")


def known() -> str:
    """The prefix as this process knows it, without a look."""
    return _known or NO_LEDGER


def is_known() -> bool:
    """Whether this process works for a ledger."""
    return known() != NO_LEDGER


def prefix() -> str:
    """The prefix; looks for the ledger while none is known, now and then."""
    if _known in (None, NO_LEDGER):
        refresh()
    return known()


def refresh() -> None:
    """Look again, unless that was done a moment ago; what cannot be read leaves things as is."""
    global _looked
    if time.monotonic() - _looked < LOOK_SECONDS:
        return
    # The reconciler says what is wrong with the database.
    with suppress(DBAPIError, MigrationError):
        follow(connect.engine(), connect.settings().base)
    _looked = time.monotonic()


def follow(engine: Engine, settings: Settings) -> None:
    """Read which ledger this database has, and whether its open run is this process's."""
    with transaction(engine) as connection:
        read(connection, settings)


def read(connection: Connection, settings: Settings) -> bool:
    """The same in the caller's transaction; False where this process has nothing to do there."""
    ledger_id = identity.read(connection)
    if ledger_id is None:
        note(None)
        return False
    open_run = connection.scalar(sa.select(runs.c.id).where(runs.c.state.in_(WORKED_ON)))
    found = relations.read_run(connection, settings, open_run) if open_run else None
    is_stranger = found is not None and not relations.fits(found[0], settings, found[1])
    note(ledger_id, is_stranger=is_stranger)
    return not is_stranger


def note(ledger_id: str | None, *, is_stranger: bool = False) -> None:
    """From now on this process works for that ledger."""
    global _known
    new = NO_LEDGER if ledger_id is None else of(ledger_id, is_stranger=is_stranger)
    if new != _known:
        _known = new
        for tell in _on_change:
            tell(new)


def on_change(tell: Callable[[str], None]) -> None:
    """Call this with the prefix, where it is known already, and with each new one."""
    _on_change.append(tell)
    if _known is not None:
        tell(_known)
