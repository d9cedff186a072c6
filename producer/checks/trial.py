"""A trial: a few rows, real and made-up, go through the run's own statements; all is undone.

On the tables themselves where the target schema is there; before that on copies beside them, with
the triggers that the originals have. A legacy table is never altered, and its rows are locked for
the trial's own time only.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from models.engine import current
from models.engine.sample import Sample, again
from models.engine.schema import target as target_tables
from models.engine.source import Sources, SourceTable
from models.engine.step import Context, Scope, Step
from models.errors import BadRow, Incompatible, Misconfigured, TooBig, Transient
from models.ledger.tables import FINISH, RECONCILIATION, VERIFICATION
from models.postgres import refusals, sessions
from models.postgres.catalog import Table, quote
from models.postgres.database import classify, transaction
from models.postgres.deferred import CHECK_NOW
from models.postgres.keys import list_cast
from models.postgres.rows import estimate
from models.preflight.obstacles import Obstacle
from models.settings import Settings
from producer.checks import rehearsal
from producer.schema import upgrade

ROW = "trial"
LOCK_TIMEOUT_MS, STATEMENT_TIMEOUT_MS, ATTEMPTS = 200, 10_000, 4
# A larger part of the real rows refused is no matter of rows: the run would quarantine as many.
SHARE = 0.1
# Without an index on a parent's key each statement reads a whole table, while rows are locked.
SMALL_TABLE = 200_000
_MAY_NOT_CREATE = text("""
SELECT format('GRANT CREATE ON DATABASE %I TO %I', current_database(), current_role)
WHERE NOT has_database_privilege(current_database(), 'CREATE')
""")
_TRIGGERS = text("""
SELECT pg_get_triggerdef(t.oid) AS definition, format('%I.%I', n.nspname, c.relname) AS table
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE t.tgrelid = :oid AND NOT t.tgisinternal AND t.tgenabled IN ('O', 'A')
  AND t.tgname NOT LIKE 'migration_capture_%' ORDER BY t.tgname
""")


@dataclass
class Trial:
    """What a trial found; `is_real` where it was made on the tables themselves."""

    is_real: bool = False
    # Real rows of the first source, and of all.
    first: int = 0
    rows: int = 0
    note: str = ""
    # Why there was none, and what to do.
    is_missing: str = ""
    remedy: str = ""
    # The real rows, for a trial after this one.
    picked: Sample | None = None
    # Oids of the target tables that it wrote to.
    written: list[int] = field(default_factory=list)
    obstacles: list[Obstacle] = field(default_factory=list)

    def refuse(self, what: str, *, is_fatal: bool) -> None:
        """Note an obstacle."""
        hint = (
            "Change or drop what refuses the rows; then: producer check"
            if is_fatal
            else "Such rows are quarantined, the rest goes through."
        )
        where = "" if self.is_real else " (on a copy)"
        self.obstacles.append(Obstacle(ROW, f"{what}{where}", hint, is_fatal=is_fatal))


class _Undo(Exception):
    """Rolls the trial back."""


class _Stop(Exception):
    """Nothing after this can be tried."""


def run(engine: Engine, settings: Settings, picked: Sample | None = None) -> Trial:
    """Try, undo, and say what was refused. Nothing remains, and nobody waits for it.

    `picked` are the rows of an earlier trial, to be tried again.

    Raises Transient or TooBig where it could not be made: locks of others, or too slow.
    """
    # Of one moment: a row that the application adds meanwhile is tried by no step, and would be
    # found to differ. A row that it changed first is a serialization failure, and is tried again.
    for attempt in range(ATTEMPTS):
        found = Trial(picked=picked)
        try:
            with transaction(
                engine,
                lock_timeout_ms=LOCK_TIMEOUT_MS,
                statement_timeout_ms=STATEMENT_TIMEOUT_MS,
                mode="ISOLATION LEVEL REPEATABLE READ",
            ) as connection:
                connection.exec_driver_sql(sessions.BATCH_PLANNING)
                _try(connection, settings, found)
                raise _Undo
        except _Undo:
            if found.written:
                rehearsal.sweep(engine, found.written)
            return found
        except DBAPIError as failure:
            error = classify(failure)
        except (Transient, TooBig, Incompatible) as failure:
            error = failure
        # Copies are made of the newest tables, and compared with the catalog of that moment: while
        # another command upgrades the schema, the two do not fit.
        if not isinstance(error, Transient | Incompatible) or attempt == ATTEMPTS - 1:
            raise error
        time.sleep(0.2 * (attempt + 1))
    raise AssertionError("unreachable")


def _try(connection: Connection, settings: Settings, found: Trial) -> None:
    migration = current.migration()
    sources = migration.read(connection, settings)
    target = target_tables.of(migration.schema, sources)
    is_current = upgrade.is_current(connection, sources)
    found.is_real = not target_tables.missing(
        migration.schema, target, sources, of_there=True
    ) and all(
        table.has_index_on(table.source.parent_column or table.source.key)
        or estimate(connection, table) < SMALL_TABLE
        for table in sources.values()
    )
    if not found.is_real and (grant := connection.scalar(_MAY_NOT_CREATE)):
        found.is_missing = "the role may not make copies of the tables (CREATE on the database)"
        found.remedy = f"{grant}{'' if is_current else '. Or first: producer schema upgrade'}"
        return
    earlier = found.picked
    found.picked = (
        again(connection, sources, earlier) if earlier else migration.sample(connection, sources)
    )
    rows = deepcopy(found.picked)
    try:
        _probe(connection, sources, found)
        if not found.is_real:
            settings = _copy(connection, sources, target, settings, rows)
        if not found.is_real or not is_current:
            with connection.begin_nested():
                upgrade.bring_up(connection, settings)
        if not found.is_real:
            _copy_triggers(connection, settings, target.tables)
    except DBAPIError as failure:
        _raise_if_passing(failure)
        error = classify(failure)
        kind = Misconfigured if isinstance(error, Misconfigured) else Incompatible
        found.obstacles.append(Obstacle(ROW, error.message, error.hint, kind=kind))
        return
    tables = current.migration().read(connection, settings)
    if found.is_real:
        _lock(connection, tables, rows)
    migration.make_up(connection, tables, rows)
    first = set(rows.of(tables.first.source.entity))
    found.first, found.note = len(first - rows.made_up), rows.note
    found.rows = rows.rows
    run = rehearsal.open_run(connection, settings, f"trial-{secrets.token_hex(4)}")
    context = Context.read(connection, settings, run)
    if found.is_real:
        found.written = [context.target.table(name).oid for name in migration.written]
    try:
        _all_stages(context, rows, found)
    except _Stop:
        return


def _probe(connection: Connection, sources: Sources, found: Trial) -> None:
    """An UPDATE of no row: what the server refuses for the table itself, whatever its rows are."""
    written = [table for table in sources.values() if table.source.writes]
    for table in written:
        column = next((c for c in table.source.writes if c in table.columns), table.source.key)
        sql, name = table.sql.replace("%", "%%"), quote(table.own(column))
        try:
            with connection.begin_nested():
                connection.exec_driver_sql(
                    f"WITH u AS (UPDATE {sql} SET {name} = {name} WHERE false RETURNING 1)"
                    " SELECT count(*) FROM u"
                )
        except DBAPIError as failure:
            _raise_if_passing(failure)
            # A role of the workers may write some columns only, and the stages try those.
            if not (found.is_real and getattr(failure.orig, "pgcode", "") == "42501"):
                found.refuse(
                    f"{table.label} cannot be updated: {refusals.of(failure.orig).words}",
                    is_fatal=True,
                )


def _copy(
    connection: Connection, sources: Sources, target: Any, settings: Settings, rows: Sample
) -> Settings:
    """Copies of the legacy tables with the rows of the trial, and of what would be adopted."""
    copies = rehearsal.make_copies(connection, sources, settings)
    for name in current.migration().written:
        if name in target.tables:
            rehearsal.copy_table(connection, target.tables[name], name)
    for name, table in sources.by_plural.items():
        kind = list_cast(table.key.base)
        which = f"WHERE {table.key_of('t')} = ANY(CAST(:keys AS {kind}[]))"
        keys = rows.of(table.source.entity)
        rehearsal.copy_rows(connection, table, name, which, keys=keys)
    return copies


def _lock(connection: Connection, sources: Sources, rows: Sample) -> None:
    """Lock what the trial writes, in key order; a lock of others ends the trial soon."""
    for entity, table in sources.items():
        if not table.source.writes:
            continue
        key, kind = table.key_of("t"), list_cast(table.key.base)
        connection.execute(
            text(
                f"SELECT count(*) FROM (SELECT FROM {table.sql} t WHERE {key} ="
                f" ANY(CAST(:keys AS {kind}[])) ORDER BY {key} FOR NO KEY UPDATE) AS locked"
            ),
            {"keys": rows.of(entity)},
        )


def _copy_triggers(connection: Connection, settings: Settings, originals: dict[str, Table]) -> None:
    for name, original in originals.items():
        if isinstance(original, SourceTable) and not original.source.writes:
            continue
        for row in connection.execute(_TRIGGERS, {"oid": original.oid}).all():
            copied_to = f" ON {rehearsal.COPIES}.{quote(name)} "
            definition = row.definition.replace(f" ON {row.table} ", copied_to, 1)
            connection.exec_driver_sql(definition.replace("%", "%%"))


def _all_stages(context: Context, rows: Sample, found: Trial) -> None:
    owners, refused = rows.parents, set[str]()
    for stage in current.migration().stages:
        if stage == FINISH:
            continue
        for step in current.migration().steps_of(stage):
            keys = _keys(context, step, rows)
            if keys is None:
                continue
            left = [key for key in keys if not {key, owners.get(key)} & refused]
            if stage in (VERIFICATION, RECONCILIATION):
                _verify(context, stage, step, left, rows, found)
            elif left:
                refused |= _write(context, step, left, rows, found)


def _keys(context: Context, step: Step, rows: Sample) -> list[str] | None:
    """What the trial gives to a step; None for steps that change the schema or replay changes."""
    if step.is_late or step.is_cutover or not step.transactional:
        return None
    table = step.table(context)
    if table is None:
        return step.items(context) if step.can_try(context) else None
    if type(step).key_lists is not Step.key_lists:
        return None
    return rows.of(step.entity)


def _write(
    context: Context, step: Step, keys: Sequence[str], rows: Sample, found: Trial
) -> set[str]:
    """Apply the step to the keys; returns those that are refused, and notes why."""
    failure = _attempt(context, step, keys)
    if failure is None:
        return set()
    made_up = [key for key in keys if key in rows.made_up]
    why = _attempt(context, step, made_up) if made_up else None
    if why is not None or step.table(context) is None:
        shown = why or failure
        found.refuse(
            f"{step.name}: the database refuses any row: {refusals.of(shown.orig).words}",
            is_fatal=True,
        )
        raise _Stop
    real = [key for key in keys if key not in rows.made_up]
    most = max(1, int(SHARE * len(real)))
    refused: dict[str, DBAPIError] = {}
    _bisect(context, step, real, failure, refused, most)
    is_fatal = len(refused) > most
    by_name: dict[str, int] = {}
    for each in refused.values():
        by_name[refusals.of(each.orig).words] = by_name.get(refusals.of(each.orig).words, 0) + 1
    at_least = "at least " if is_fatal else ""
    for name, count in by_name.items():
        found.refuse(
            f"{step.name}: the database refuses {at_least}{count} of {len(real)} rows: {name}",
            is_fatal=is_fatal,
        )
    if is_fatal:
        raise _Stop
    return set(refused)


def _bisect(
    context: Context,
    step: Step,
    keys: Sequence[str],
    failure: DBAPIError,
    refused: dict[str, DBAPIError],
    most: int,
) -> None:
    """Find the rows that are refused, until there are more than `most`."""
    if len(keys) == 1:
        refused[keys[0]] = failure
        return
    middle = len(keys) // 2
    for half in (keys[:middle], keys[middle:]):
        if half and len(refused) <= most:
            why = _attempt(context, step, half)
            if why is not None:
                _bisect(context, step, half, why, refused, most)


def _attempt(context: Context, step: Step, keys: Sequence[str]) -> DBAPIError | None:
    """Apply the step to these keys as a batch does; the error, where the database refuses it."""
    scope = Scope(keys=tuple(keys))
    optimistic = [] if context.is_repeat else [replace(scope, is_optimistic=True)]
    failed: DBAPIError | None = None
    for attempt in (*optimistic, scope):
        try:
            with context.connection.begin_nested():
                step.prepare(context, attempt)
                step.apply(context, attempt)
                if context.may_defer:
                    # Undone by itself, so that they are deferred again for the next step.
                    with context.connection.begin_nested() as look:
                        context.connection.exec_driver_sql(CHECK_NOW)
                        look.rollback()
                return None
        except DBAPIError as failure:
            _raise_if_passing(failure)
            failed = failure
    return failed


def _verify(
    context: Context, stage: str, step: Step, keys: Sequence[str], rows: Sample, found: Trial
) -> None:
    try:
        with context.connection.begin_nested():
            rows_found = rehearsal.find_differences(context, stage, step, Scope(keys=tuple(keys)))
    except (DBAPIError, BadRow) as failure:
        if isinstance(failure, DBAPIError):
            _raise_if_passing(failure)
            said = refusals.of(failure.orig).words
        else:
            said = failure.message
        found.refuse(f"{stage}: {said}", is_fatal=True)
        raise _Stop from None
    if not rows_found:
        return
    if not all(each.can_try(context) for each in context.migration.authored if not each.entity):
        # What such a step makes, each row would be found to lack.
        return
    kinds: dict[str, set[str]] = {}
    for kind, entity, key, table, detail, *_ in rows_found:
        what = f"{kind} {entity} in {table}" + (f".{detail}" if kind == "wrong_value" else "")
        kinds.setdefault(what, set()).add(str(key))
    for what, different in kinds.items():
        is_made_up = any(key in rows.made_up for key in different)
        found.refuse(
            f"{stage}: {len(different)} of {len(keys)} rows end otherwise than written: {what}",
            is_fatal=is_made_up or len(different) > max(1, int(SHARE * len(keys))),
        )


def _raise_if_passing(failure: DBAPIError) -> None:
    """Raise what is no refusal: a lock, a lost connection, a time-out."""
    if isinstance(error := classify(failure), Transient | TooBig):
        raise error from None
