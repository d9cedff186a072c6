"""The migration's repairs, page by page; a dry run does the same and takes it back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from models.engine import current
from models.engine.repair import Change, Repair
from models.engine.step import Context, Scope
from models.errors import Misconfigured, NotAllowed
from models.ledger import audit, relations, tables
from models.ledger.tables import runs
from models.postgres.database import transaction
from models.settings import Settings
from producer.reports import status
from producer.runs import partition
from producer.runs.standing import LET_IT_END

PAGE_ROWS = 2_000
# So many changes are shown; all of them are counted, and those of balances stand in the audit.
SHOWN = 1_000


def run(
    engine: Engine,
    settings: Settings,
    what: str,
    *,
    key: str | None,
    dry_run: bool,
    force: bool,
) -> dict[str, Any]:
    """Repair one row of the first source or all; what was changed, and what was left alone.

    A page is a transaction. Safe to repeat. Raises NotAllowed while a run is open, where all runs
    are rolled back, or where the migration has no such repair, and Misconfigured for an unknown
    key.
    """
    migration = current.migration()
    if what not in migration.repairs:
        names = ", ".join(migration.repairs)
        raise NotAllowed(
            f"The migration {migration.name} has no repair {what}",
            hint=f"It has: {names}." if names else "What differs is repaired by: producer retry",
        )
    with transaction(engine) as connection:
        newest = _newest_to_repair(connection)
        relations.adopt(connection, newest, settings)
        _require_row(connection, settings, newest, key)
    repair = migration.repairs[what]
    changed, shown, left = 0, list[Change](), list[Change]()
    for scope in _scopes(engine, settings, key):
        with transaction(engine) as connection:
            page = connection.begin_nested()
            context = _context(connection, settings)
            found = repair.fix(context, scope, force=force)
            if repair.left_alone and not force:
                left += repair.left_alone(context, scope)[: SHOWN - len(left)]
            if dry_run:
                page.rollback()
            else:
                _note(connection, what, repair, found)
                page.commit()
        changed += len(found)
        shown += found[: SHOWN - len(shown)]
    note = _unmigrated(engine, settings, key) if key and not (changed or left) else ""
    return {
        "changed": changed,
        "changes": shown,
        "left_alone": left,
        "dry_run": dry_run,
        "note": note,
    }


_IS_MIGRATED = """
WITH quarantined_rows AS (
  SELECT q.entity, q.legacy_key, q.reason FROM migration.quarantine q
  WHERE q.state IN ('open', 'accepted')
)
SELECT ({is_migrated}) IS TRUE AS is_migrated,
  (SELECT q.reason FROM quarantined_rows q
   WHERE q.entity = :entity AND q.legacy_key = {key}::text) AS reason
FROM {table} t {joins} WHERE {scope}
"""


def _unmigrated(engine: Engine, settings: Settings, key: str) -> str:
    """Why a repair has nothing to do with a row of the first source: it was never migrated."""
    with transaction(engine) as connection:
        context = _context(connection, settings)
        first = context.sources.first
        proof = current.migration().proof(context, first.source.entity)
        scope = Scope(keys=(key,))
        row = context.connection.execute(
            sa.text(
                _IS_MIGRATED.format(
                    is_migrated=proof.is_migrated,
                    joins=proof.joins,
                    table=first.sql,
                    key=first.key_of("t"),
                    scope=scope.of(first),
                )
            ),
            context.parameters | scope.parameters | {"entity": first.source.entity},
        ).one()
    name = f"The {first.source.entity} {key}"
    if row.reason:
        return f"{name} is quarantined: {row.reason}. Fix it, then: producer retry --wait"
    return "" if row.is_migrated else f"{name} is not migrated yet: producer enqueue-all --wait"


def _require_row(connection: Connection, settings: Settings, run: Any, key: str | None) -> None:
    if key is None:
        return
    context = Context.read(connection, settings, run)
    first = context.sources.first
    where = Scope(keys=(key,)).of(first)
    try:
        with connection.begin_nested():
            found = connection.scalar(
                sa.text(f"SELECT true FROM {first.sql} t WHERE {where}"), {"keys": [key]}
            )
    except sa.exc.DataError:
        found = None
    if not found:
        raise Misconfigured(
            f"There is no {first.source.entity} {key}",
            hint=f"Give its {first.source.key}, as {first.label} has it.",
        )


def _scopes(engine: Engine, settings: Settings, key: str | None) -> Iterator[Scope]:
    if key is not None:
        yield Scope(keys=(key,))
        return
    after: str | None = None
    while True:
        with transaction(engine) as connection:
            first = _context(connection, settings).sources.first
            pages = partition.cut(connection, first, after=after, rows=PAGE_ROWS, pages=8)
        for page in pages:
            yield Scope(page.low, page.high)
        after = pages[-1].high
        if after is None:
            return


def _context(connection: Connection, settings: Settings) -> Context:
    return Context.read(connection, settings, _newest_to_repair(connection))


def _newest_to_repair(connection: Connection) -> Any:
    """The newest run that is not rolled back; asked before each page, as a run may open between.

    Any run may be open, not only the newest: an older one may be retried or rolled back.
    """
    newest = status.find_run(connection, None)
    query = sa.select(runs).where(runs.c.state != "rolled_back").order_by(runs.c.id.desc())
    found = connection.execute(query).all()
    for run in found:
        if run.state in (*tables.OPEN_STATES, "rolling_back"):
            raise NotAllowed(
                f"Run {run.id} is {run.state}: a repair would be in its way", hint=LET_IT_END
            )
    if not found:
        raise NotAllowed(
            f"Run {newest.id} is rolled back, and no other run is left: there is nothing to repair",
            hint="Migrate first: producer enqueue-all --wait",
        )
    return found[0]


def _note(connection: Connection, what: str, repair: Repair, found: list[Change]) -> None:
    """Each change of an audited column by itself; of the rest, how many there were."""
    entity, column = current.migration().sources[0].entity, repair.audited
    if column:
        for change in found:
            audit.note(
                connection,
                f"repair {what}",
                before={entity: change["key"], column: change["before"]},
                after={entity: change["key"], column: change["after"]},
            )
    elif found:
        audit.note(connection, f"repair {what}", after={"changes": len(found)})
