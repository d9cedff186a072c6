"""The guide's three fixes, page by page; a dry run does the same and takes it back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from models.dashboard.repairs import REPAIRS, Change, left_alone
from models.engine.step import Context, Scope
from models.errors import Misconfigured, NotAllowed
from models.ledger import audit, relations, tables
from models.ledger.tables import runs
from models.postgres.database import transaction
from models.settings import Settings
from producer.reports import status
from producer.runs import partition

PAGE_ROWS = 2_000
# So many changes are shown; all of them are counted, and those of balances stand in the audit.
SHOWN = 1_000


def run(
    engine: Engine,
    settings: Settings,
    what: str,
    *,
    user: str | None,
    dry_run: bool,
    force: bool,
) -> dict[str, Any]:
    """Repair one user or all, a page a transaction; what was changed, and what was left alone.

    Safe to repeat. Raises NotAllowed while a run is open, and Misconfigured for an unknown user.
    """
    with transaction(engine) as connection:
        last = status.find_run(connection, None)
        relations.adopt(connection, last, settings)
        if last.state in (*tables.OPEN_STATES, "rolling_back"):
            raise NotAllowed(
                f"Run {last.id} is {last.state}: a repair would be in its way",
                hint="Wait for its end: producer status --watch",
            )
        _require_user(connection, settings, last, user)
    changed, shown, left = 0, list[Change](), list[Change]()
    for scope in _scopes(engine, settings, user):
        with transaction(engine) as connection:
            page = connection.begin_nested()
            context = _context(connection, settings)
            found = REPAIRS[what](context, scope, force=force)
            if what == "credits" and not force:
                left += left_alone(context, scope)[: SHOWN - len(left)]
            if dry_run:
                page.rollback()
            else:
                _note(connection, what, found)
                page.commit()
        changed += len(found)
        shown += found[: SHOWN - len(shown)]
    return {"changed": changed, "changes": shown, "left_alone": left, "dry_run": dry_run}


def _require_user(connection: Connection, settings: Settings, run: Any, user: str | None) -> None:
    if user is None:
        return
    context = Context.read(connection, settings, run)
    users = context.legacy.users
    where = Scope(keys=(user,)).condition("u.id", users.columns["id"].base)
    try:
        with connection.begin_nested():
            found = connection.scalar(
                sa.text(f"SELECT true FROM {users.sql} u WHERE {where}"), {"keys": [user]}
            )
    except sa.exc.DataError:
        found = None
    if not found:
        raise Misconfigured(
            f"There is no user {user}", hint="Give the id, as the users table has it."
        )


def _scopes(engine: Engine, settings: Settings, user: str | None) -> Iterator[Scope]:
    if user is not None:
        yield Scope(keys=(user,))
        return
    after: str | None = None
    while True:
        with transaction(engine) as connection:
            users = _context(connection, settings).legacy.users
            pages = partition.cut(connection, users, after=after, rows=PAGE_ROWS, pages=8)
        for page in pages:
            yield Scope(page.low, page.high)
        after = pages[-1].high
        if after is None:
            return


def _context(connection: Connection, settings: Settings) -> Context:
    newest = sa.select(runs).order_by(runs.c.id.desc()).limit(1)
    return Context.read(connection, settings, connection.execute(newest).one())


def _note(connection: Connection, what: str, found: list[Change]) -> None:
    """A balance is a matter of its own; of the rest, how much there was."""
    if what == "credits":
        for change in found:
            audit.note(
                connection,
                "repair credits",
                before={"user": change["key"], "credits_balance": change["before"]},
                after={"user": change["key"], "credits_balance": change["after"]},
            )
    elif found:
        audit.note(connection, f"repair {what}", after={"changes": len(found)})
