"""Who did what to a migration, when, from where, and what it changed: noted in its transaction."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from models.ledger.tables import audit

# Who acts and from where, when it is not the user of this process.
_acting: ContextVar[tuple[str, str] | None] = ContextVar("acting", default=None)


@contextmanager
def acting(actor: str, origin: str) -> Iterator[None]:
    """For the time of the block, and in this thread, entries are this actor's."""
    token = _acting.set((actor, origin))
    try:
        yield
    finally:
        _acting.reset(token)


def who() -> tuple[str, str]:
    """Who acts, and from where."""
    return _acting.get() or (_login(), f"{socket.gethostname()}/{os.getpid()}")


def note(
    connection: Connection,
    action: str,
    run_id: str | None = None,
    *,
    before: object = None,
    after: object = None,
) -> None:
    """Add an entry; `before` and `after` are anything JSON holds, but no personal data."""
    actor, origin = who()
    connection.execute(
        sa.insert(audit).values(
            actor=actor,
            origin=origin,
            action=action,
            run_id=run_id,
            before=sa.null() if before is None else before,
            after=sa.null() if after is None else after,
        )
    )


def entries(connection: Connection, limit: int = 100) -> list[dict[str, Any]]:
    """The newest entries, newest first."""
    found = connection.execute(sa.select(audit).order_by(audit.c.id.desc()).limit(limit))
    return [{**row._mapping, "at": row.at.isoformat(timespec="seconds")} for row in found]


def _login() -> str:
    """The operator behind `sudo`, where there is one; a container's user may have no name."""
    behind = os.environ.get("SUDO_USER")
    if behind:
        return behind
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
