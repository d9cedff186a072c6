"""A batch that takes its workers down: split at once into many, to the one row that does it.

A row that kills its process leaves no error behind, only leases that run out. Each further death
costs a lease, so a suspect batch is cut into a hundred parts and not into halves, and each part
is split at its next death. In the end one row is quarantined.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy import Connection, RowMapping

from models.engine import current
from models.engine.step import Context, Counts, Scope, Step, add
from models.ledger.claims import MAX_LEASE_EXPIRIES, Claim, scope_of
from models.ledger.quarantine import OWNER_IS_QUARANTINED, OWNER_QUARANTINED, WORKER_DIED
from models.ledger.tables import RECONCILIATION, VERIFICATION, batches, move_batches, runs
from models.settings import Settings
from producer.logs import Log

PARTS = 100
log = Log("migration.poison")


def split(connection: Connection, settings: Settings, batch: RowMapping) -> None:
    """Split a batch (a row of the ledger) whose lease ran out too often, or quarantine its row.

    In the caller's transaction, with the batch's row locked.
    """
    run = connection.execute(sa.select(runs).where(runs.c.id == batch["run_id"])).one()
    context = Context.read(connection, settings, run, batch_id=batch["id"])
    step, scope = current.migration().step(batch["step"]), scope_of(batch)
    is_check = batch["stage"] in (VERIFICATION, RECONCILIATION)
    keys = step.keys_in(context, scope)
    is_one_row = len(keys) == 1 and not is_check
    dependents = step.part_keys_in(context, scope) if is_one_row else []
    log.warning("batch split", run=run.id, batch=batch["id"], rows=len(keys))
    if len(keys) > 1:
        _replace(connection, batch, [scope.only(part) for part in _parts(keys)])
    elif step.table(context) is None or is_check:
        error = f"its worker died {batch['lapses'] + 1} times"
        _move(connection, batch, "failed", error=error)
    elif scope.parts is None and dependents:
        # The row without its dependents; where that passes, `follow` continues with those.
        _replace(connection, batch, [scope.only(keys).with_parts([])])
    elif scope.parts is not None and len(scope.parts) > 1:
        parts = [scope.with_parts(part) for part in _parts(scope.parts)]
        _replace(connection, batch, parts)
    else:
        counts: Counts = {}
        if keys:
            _quarantine(context, step, batch, keys, dependents, scope)
        if scope.again:
            # Its change must not be replayed again, and what it had must not stay.
            counts = add(step.prepare(context, scope), step.withdraw(context, scope))
        # A page of `orphans` without an orphan: nothing is left to do, and nothing to quarantine.
        _move(connection, batch, "quarantined" if keys else "done", counts=counts)


def follow(connection: Connection, context: Context, claim: Claim) -> None:
    """After a suspect row passed alone: the rows that hang on it, in batches of their own."""
    if claim.scope.parts != ():
        return
    dependents = current.migration().step(claim.step).part_keys_in(context, claim.scope)
    batch = connection.execute(sa.select(batches).where(batches.c.id == claim.batch_id))
    scopes = [claim.scope.with_parts(part) for part in _parts(dependents)]
    _insert(connection, batch.mappings().one(), scopes)


def _quarantine(
    context: Context,
    step: Step,
    batch: RowMapping,
    keys: Sequence[str],
    dependents: Sequence[str],
    scope: Scope,
) -> None:
    """The row that is left, which is a part of one row, or that row with all its parts."""
    culprit, its_keys = (step.part_entity, scope.parts) if scope.parts else (step.entity, keys)
    step.quarantine(
        context,
        culprit,
        its_keys,
        reason=WORKER_DIED,
        message="Its worker died, each time that it came to this row.",
        attempts=batch["lapses"] + 1,
    )
    if culprit == step.entity and dependents:
        step.quarantine(
            context,
            step.part_entity,
            dependents,
            reason=OWNER_QUARANTINED,
            message=OWNER_IS_QUARANTINED,
        )


def _parts(keys: Sequence[str]) -> list[Sequence[str]]:
    size = max(1, -(-len(keys) // PARTS))
    return [keys[start : start + size] for start in range(0, len(keys), size)]


def _replace(connection: Connection, batch: RowMapping, scopes: list[Scope]) -> None:
    _insert(connection, batch, scopes)
    _move(connection, batch, "split")


def _insert(connection: Connection, batch: RowMapping, scopes: list[Scope]) -> None:
    """Batches in the place of another one, not published yet; one death more splits them again."""
    same = {name: batch[name] for name in ("run_id", "stage", "step", "window")}
    for scope in scopes:
        connection.execute(
            sa.insert(batches).values(
                **same,
                key_list=scope.keys,
                part_list=scope.parts,
                rows=0 if scope.parts else len(scope.keys or ()),
                lapses=MAX_LEASE_EXPIRIES - 1,
            )
        )


def _move(connection: Connection, batch: RowMapping, to: str, **values: object) -> None:
    """To the end of a batch whose lease ran out once more."""
    values["expiries"] = batches.c.expiries + 1
    connection.execute(move_batches(to, **values).where(batches.c.id == batch["id"]))
