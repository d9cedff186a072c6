"""A rehearsal: every step on a sample of the real rows, in one transaction that is rolled back.

The sample is copied into a schema of its own, with the indexes that the originals have. Nothing of
it is ever seen by anybody else, and nothing remains, however it ends.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.exc import DBAPIError

from models.engine import current
from models.engine.checks.verification import statements_of
from models.engine.live.replay import Replay
from models.engine.schema import target as target_tables
from models.engine.source import Sources, SourceTable
from models.engine.step import Context, Counts, Scope, Step, add
from models.errors import BadRow, Incompatible, NotAllowed
from models.ledger.tables import (
    FINISH,
    OPEN_STATES,
    RECONCILIATION,
    SCHEMA,
    VERIFICATION,
    quarantine,
    runs,
)
from models.postgres import sessions
from models.postgres.catalog import Table, quote
from models.postgres.database import as_ours
from models.postgres.keys import key_cast
from models.postgres.rows import count_rows
from models.settings import Settings
from producer.runs import partition
from producer.schema import upgrade

COPIES = "migration_rehearsal"
RUN = "rehearsal"
PIECES, ROWS_A_PAGE = 8, 500
_LIMITS: dict[str, Any] = {
    "statement_timeout_ms": 600_000,
    "lock_timeout_ms": 2_000,
    "idle_timeout_ms": 60_000,
}
# More than the trial's own rows take.
SWEPT_BYTES = 8 * 2**20
_SWEPT = text("""
SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE (c.oid = ANY(:oids) OR c.oid IN (to_regclass('migration.before_images'),
    to_regclass('migration.quarantine'), to_regclass('migration.created_rows')))
  AND pg_relation_size(c.oid) BETWEEN 1 AND :most ORDER BY c.relname
""")


@dataclass
class Cost:
    """What one step took: rows of its own table, seconds, statements, bytes of WAL."""

    stage: str
    step: str
    rows: int = 0
    seconds: float = 0.0
    statements: int = 0
    wal_bytes: int = 0


@dataclass
class Rehearsal:
    """The costs of `rows` rows of the first source; tables and indexes grew by `disk_bytes`."""

    rows: int
    costs: list[Cost] = field(default_factory=list)
    disk_bytes: int = 0
    # What its steps counted, as a run's batches would; rows of pages that the database refused.
    counts: Counts = field(default_factory=dict)
    refused: int = 0
    # Rows by reason, and what the verification found, by kind, entity and table.
    quarantined: dict[str, int] = field(default_factory=dict)
    differences: Counter[str] = field(default_factory=Counter)


def rehearse(engine: Engine, settings: Settings, most: int) -> Rehearsal:
    """Migrate about so many rows on copies, verify them, close the schema, and undo all of it.

    Raises NotAllowed while a run is open, Incompatible where there is no row.
    """
    with engine.connect() as connection, connection.begin() as whole:
        try:
            sessions.begin(connection, **_LIMITS)
            connection.exec_driver_sql(sessions.BATCH_PLANNING)
            _refuse_while_open(connection)
            return _rehearse(connection, settings, most)
        finally:
            whole.rollback()


def _refuse_while_open(connection: Connection) -> None:
    if connection.scalar(sa.select(sa.func.to_regclass(f"{SCHEMA}.runs"))):
        states = (*OPEN_STATES, "rolling_back")
        found = connection.scalar(sa.select(runs.c.id).where(runs.c.state.in_(states)))
        if found:
            raise NotAllowed(
                f"Run {found} is open: a rehearsal beside it would measure both",
                hint="Wait for its end (producer status --watch), or cancel it.",
            )


def _rehearse(connection: Connection, settings: Settings, most: int) -> Rehearsal:
    copies = _copy(connection, current.migration().read(connection, settings), settings, most)
    upgrade.bring_up(connection, copies)
    run = open_run(connection, copies, RUN)
    first = current.migration().sources[0].plural
    found = Rehearsal(_count(connection, f"{COPIES}.{quote(first)}"))
    if not found.rows:
        raise Incompatible(f"There are no {first} to rehearse with")
    before = _size(connection)
    for stage in current.migration().stages:
        for step in current.migration().steps_of(stage):
            # Replays follow the application's own writes, and the cutover locks.
            if not isinstance(step, Replay) and not step.is_cutover:
                context = Context.read(connection, copies, run)
                context = replace(context, is_repeat=False, own_run=RUN)
                found.costs.append(_run(context, stage, step, found))
    found.quarantined = _quarantined(connection)
    found.disk_bytes = _size(connection) - before
    return found


def open_run(connection: Connection, settings: Settings, run_id: str) -> Any:
    """A run to try with, in no open state, so that opening a real run does not wait for it."""
    return connection.execute(
        sa.insert(runs)
        .values(
            id=run_id,
            state="failed",
            grants=current.migration().constants(settings),
            batch_size="auto",
            tables=current.table_names(settings),
        )
        .returning(*runs.c)
    ).one()


def make_copies(connection: Connection, sources: Sources, settings: Settings) -> Settings:
    """Empty copies of the source tables; the settings that name them."""
    connection.exec_driver_sql(f"CREATE SCHEMA {COPIES}")
    for name, table in sources.by_plural.items():
        copy_table(connection, table, name)
    return settings.with_copies({name: f"{COPIES}.{name}" for name in sources.by_plural})


def copy_table(connection: Connection, original: Table, name: str) -> None:
    """An empty copy with all that belongs to the table alone: no foreign keys, no triggers."""
    copy, sql = f"{COPIES}.{quote(name)}", original.sql.replace("%", "%%")
    connection.exec_driver_sql(f"CREATE TABLE {copy} (LIKE {sql} INCLUDING ALL)")
    # Not copied, and a publication of all tables publishes the copy too.
    has_key = "SELECT EXISTS (SELECT FROM pg_index WHERE indrelid = :oid AND indisprimary)"
    if not connection.scalar(text(has_key), {"oid": original.oid}):
        connection.exec_driver_sql(f"ALTER TABLE {copy} REPLICA IDENTITY FULL")


def _copy(connection: Connection, sources: Sources, settings: Settings, rows_: int) -> Settings:
    """Copy a sample of rows without a parent, and their children; the settings of the copies."""
    copies = make_copies(connection, sources, settings)
    schema = current.migration().schema
    target = target_tables.of(schema, sources)
    # What is made follows the types of ids that are there.
    is_shaped = sources.shape.kept or sources.shape.integer_ids
    for name in current.migration().written if is_shaped else schema.adopted:
        if name in target.tables or name in schema.adopted:
            copy_table(connection, target.table(name), name)
    for name, table in sources.by_plural.items():
        if table.source.parent:
            continue
        # Pieces from all over the table: its oldest rows are seldom like the newest.
        starts, key = _starts(connection, table), table.key_of("t")
        which = (
            f"WHERE {key} >= CAST(:start AS {key_cast(table.key.base)}) ORDER BY {key} LIMIT :most"
        )
        for start in starts:
            copy_rows(connection, table, name, which, start=start, most=-(-rows_ // len(starts)))
    for name, table in sources.by_plural.items():
        parent = sources.parent(table)
        if parent is not None:
            copied = f"{COPIES}.{quote(parent.source.plural)}"
            parents = f"SELECT {parent.key_of('u')} FROM {copied} u"
            copy_rows(connection, table, name, f"WHERE {table.parent_of('t')} IN ({parents})")
        connection.exec_driver_sql(f"ANALYZE {COPIES}.{quote(name)}")
    return copies


def _starts(connection: Connection, table: SourceTable) -> list[str]:
    """Keys from random places of the table, and its first one."""
    estimated, key = count_rows(connection, table), table.key_of("t")
    percent = min(100.0, 100.0 * PIECES * 100 / max(1, estimated))
    sample = text(
        f"SELECT place.key FROM (SELECT {key}::text AS key, random() AS place FROM {table.sql} t"
        " TABLESAMPLE SYSTEM (:percent)) AS place ORDER BY place.place LIMIT :pieces"
    )
    found = connection.scalars(sample, {"percent": percent, "pieces": PIECES - 1}).all()
    # Not every key type has a min().
    first = connection.scalar(text(f"SELECT {key}::text FROM {table.sql} t ORDER BY {key} LIMIT 1"))
    return sorted({first, *found} - {None})


def copy_rows(
    connection: Connection, original: Table, name: str, which: str, **values: Any
) -> None:
    """Copy the rows `t` of the original that the clause selects, with all columns as they are."""
    written = ", ".join(
        # A lone colon would begin a bound parameter.
        quote(column).replace(":", "\\:")
        for column in connection.scalars(
            text(
                "SELECT attname FROM pg_attribute WHERE attrelid = :oid AND attnum > 0"
                " AND NOT attisdropped AND attgenerated = ''"
            ),
            {"oid": original.oid},
        )
    )
    connection.execute(
        text(
            f"INSERT INTO {COPIES}.{quote(name)} ({written}) OVERRIDING SYSTEM VALUE"
            f" SELECT {written} FROM {original.sql} t {which} ON CONFLICT DO NOTHING"
        ),
        values,
    )


def _quarantined(connection: Connection) -> dict[str, int]:
    columns = quarantine.c
    query = sa.select(columns.reason, sa.func.count()).where(columns.run_id == RUN)
    grouped = query.group_by(columns.reason).order_by(columns.reason)
    return {str(reason): int(count) for reason, count in connection.execute(grouped)}


def _run(context: Context, stage: str, step: Step, found: Rehearsal) -> Cost:
    """One step over all its pages or items."""
    cost = Cost(stage, step.name)
    table = step.table(context)
    if table is None:
        scopes = [(Scope(keys=(item,)), 0) for item in step.items(context)]
    else:
        pages = _pages(context.connection, table)
        scopes = [(Scope(page.low, page.high), page.rows) for page in pages]
    with _measured(context.connection, cost):
        for scope, rows in scopes:
            cost.rows += rows
            with as_ours():
                counts = _apply(context, stage, step, scope, found)
            if counts is None:
                found.refused += rows
            else:
                found.counts = add(found.counts, counts)
    return cost


def _apply(
    context: Context, stage: str, step: Step, scope: Scope, found: Rehearsal
) -> Counts | None:
    """What the step counts; None where the database refuses the page."""
    if stage in (VERIFICATION, RECONCILIATION) and step.stage != VERIFICATION:
        for kind, entity, _, table, *_ in find_differences(context, stage, step, scope):
            found.differences[f"{entity} {kind} {table}"] += 1
        return {}
    # As a run does it: optimistically, then with all guards. A run would quarantine a row that the
    # database refuses even then, so a rehearsal continues.
    for attempt in (replace(scope, is_optimistic=True), scope):
        try:
            with context.connection.begin_nested():
                step.prepare(context, attempt)
                return step.apply(context, attempt)
        except DBAPIError:
            if stage == FINISH or scope.keys is not None:
                raise
    return None


def find_differences(context: Context, stage: str, step: Step, scope: Scope) -> list[Any]:
    """What the verification's own statements find in the scope: rows as of `Step.differences`."""
    try:
        with as_ours(), context.connection.begin_nested():
            _, statements = statements_of(context, step, scope, is_optimistic=True)
    except BadRow:
        _, statements = statements_of(context, step, scope)
    parameters = context.parameters | {"stage": stage} | scope.parameters
    return [
        found
        for statement in statements
        for found in context.connection.execute(text(statement), parameters)
    ]


def _pages(connection: Connection, table: SourceTable) -> Iterator[partition.Page]:
    after: str | None = None
    while True:
        (page,) = partition.cut(connection, table, after=after, rows=ROWS_A_PAGE, pages=1)
        yield page
        after = page.high
        if after is None:
            return


@contextmanager
def _measured(connection: Connection, cost: Cost) -> Iterator[None]:
    position = "SELECT pg_current_wal_insert_lsn() - '0/0'"
    written = int(connection.scalar(text(position)) or 0)

    def count(*_: Any) -> None:
        cost.statements += 1

    event.listen(connection, "before_cursor_execute", count)
    started = time.perf_counter()
    try:
        yield
    finally:
        cost.seconds = time.perf_counter() - started
        event.remove(connection, "before_cursor_execute", count)
    cost.wal_bytes = int(connection.scalar(text(position)) or 0) - written


def _count(connection: Connection, table: str) -> int:
    return int(connection.scalar(text(f"SELECT count(*) FROM {table}")) or 0)


def _size(connection: Connection) -> int:
    """Bytes of all tables that the rehearsal writes, with their indexes."""
    return int(
        connection.scalar(
            text(
                "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c"
                " WHERE c.relkind = 'r' AND c.relnamespace IN (SELECT oid FROM pg_namespace"
                " WHERE nspname IN (:copies, :ledger))"
            ),
            {"copies": COPIES, "ledger": SCHEMA},
        )
        or 0
    )


def sweep(engine: Engine, written: list[int]) -> None:
    """Vacuum the tables that are nearly empty: the trial's rows are undone, but still in the files.

    Their keys are the last of each index. A run's keys would all be inserted before them, and
    PostgreSQL would search from the root for each key and leave index pages half full.
    """
    with (
        suppress(DBAPIError),
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
        sessions.outside(connection),
    ):
        found = connection.execute(_SWEPT, {"oids": written, "most": SWEPT_BYTES})
        if tables := ", ".join(found.scalars().all()).replace("%", "%%"):
            # A role that does not own a table is warned, and passes it over.
            connection.exec_driver_sql(f"VACUUM (SKIP_LOCKED, INDEX_CLEANUP) {tables}")
