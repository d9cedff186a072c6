"""Quarantined rows that an operator accepts as they are, or takes back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, text

from models.engine.step import Context
from models.errors import Misconfigured
from models.ledger import audit, tables
from models.ledger.tables import quarantine, runs
from models.postgres.database import transaction
from models.settings import Settings
from producer.reports import status


def accept(
    engine: Engine,
    settings: Settings,
    run_id: str | None,
    keys: Iterable[str] = (),
    *,
    reason: str | None = None,
    takes_back: bool = False,
) -> int:
    """Accept rows that stay out, each given as `key` or `entity:key`; returns how many.

    With a `reason`: all rows of the run that have it.

    What was quarantined because of an accepted owner is accepted with it. `takes_back` opens
    accepted rows again instead, with what was accepted because of them; the run and the newest one
    are then no longer `completed`. Raises Misconfigured, and changes none, when a key is not in the
    quarantine, or is there for several entities.
    """
    before, after = ("accepted", "open") if takes_back else ("open", "accepted")
    with transaction(engine) as connection:
        run = status.find_run(connection, run_id)
        if takes_back:
            newest = status.find_run(connection, None).id
            completed = _lock_completed(connection, run.id, newest)
        standing = (quarantine.c.run_id == run.id, quarantine.c.state.in_(("open", "accepted")))
        chosen = []
        for given in keys:
            name = quarantine.c.entity + ":" + quarantine.c.legacy_key
            found = connection.execute(
                sa.select(quarantine.c.entity, quarantine.c.legacy_key).where(
                    *standing, sa.or_(quarantine.c.legacy_key == given, name == given)
                )
            ).all()
            if len(found) != 1:
                why = "names several rows" if found else "is not in the quarantine"
                raise Misconfigured(
                    f"{given} {why} of run {run.id}",
                    hint="Write it as entity:key, from producer quarantine. Nothing was changed.",
                )
            chosen.append(tuple(found[0]))
        wanted = (
            sa.tuple_(quarantine.c.entity, quarantine.c.legacy_key).in_(chosen)
            if reason is None
            else sa.and_(quarantine.c.reason == reason, quarantine.c.state == before)
        )
        moved = connection.execute(
            sa.update(quarantine)
            .where(*standing, wanted)
            .values(state=after, changed_at=sa.func.clock_timestamp())
            .returning(quarantine.c.entity, quarantine.c.legacy_key)
        )
        changed = [(row.entity, row.legacy_key) for row in moved]
        context = Context.read(connection, settings, run)
        for entity, table in context.sources.items():
            if table.source.parent:
                dependents = connection.scalars(
                    text(
                        "UPDATE migration.quarantine q"
                        " SET state = :after, changed_at = clock_timestamp()"
                        f" FROM {table.sql} c JOIN migration.quarantine u ON u.entity = :parent"
                        f" AND u.legacy_key = {table.parent_of('c')}::text"
                        " AND u.legacy_key = ANY(:owners)"
                        f" WHERE q.entity = :entity AND q.legacy_key = {table.key_of('c')}::text"
                        " AND q.state = :before AND q.reason = 'owner_quarantined'"
                        " RETURNING q.legacy_key"
                    ),
                    {
                        "entity": entity,
                        "parent": table.source.parent,
                        "owners": [key for of, key in changed if of == table.source.parent],
                        "before": before,
                        "after": after,
                    },
                )
                changed += [(entity, key) for key in dependents]
        if takes_back and changed:
            for each in completed:
                to = "completed_with_quarantine"
                tables.move_run(connection, each.id, to, finished_at=each.finished_at)
        audit.note(
            connection,
            "unaccept" if takes_back else "accept",
            run.id,
            after={
                after: [":".join(row) for row in chosen] if reason is None else reason,
                "rows": len(changed),
            },
        )
    return len(changed)


def _lock_completed(connection: Connection, *ids: str) -> list[sa.Row[tuple[Any, ...]]]:
    """Those of the runs that are completed: with a row open again they are not.

    They stay locked: a run that is about to complete counts the open rows after that.
    """
    locked = sa.select(runs).where(runs.c.id.in_(ids)).order_by(runs.c.id).with_for_update()
    return [run for run in connection.execute(locked).all() if run.state == "completed"]
