"""The last of the live writes, replayed and verified while the source tables take no write."""

from __future__ import annotations

from sqlalchemy import text

from models.engine.checks.judgement import Removed
from models.engine.live.replay import KEYS_A_BATCH, Replay
from models.engine.step import Context, Scope, Step
from models.ledger import selection
from models.postgres.database import LOCK_MS, LOCK_TIMEOUT_MS

# The same for the row of somebody who has locked it and cannot write now.
ROW_LOCK_MS = 100
# From there to the commit: no writer waits for longer than both together.
HELD_MS = 1_200
# What the end of a run takes anyway, with writes meanwhile that belong to the next run.
_HAS_WAITED = """
SELECT EXISTS (SELECT FROM migration.changes c
  WHERE c.captured_at < clock_timestamp() - interval '10 seconds' AND {selected})
"""
_IS_HELD_AGAIN = """
SELECT EXISTS (SELECT FROM migration.batches
  WHERE run_id = :run_id AND stage = :stage AND step = :step)
"""


class Settle(Step):
    """Runs in rounds of its own (`worker.cutover`): few changes are left, then the lock."""

    name = "settle"
    stage = "finish"
    queue = "migration.control"
    is_cutover = True

    def items(self, context: Context) -> list[str]:
        return ["rest"]


class SettleAgain(Settle):
    """The same before the end, where it has waited: for hours, a pause, a key, or a worker."""

    name = "settle_again"

    def items(self, context: Context) -> list[str]:
        statement = text(_HAS_WAITED.format(selected=selection.of_change(context)))
        has_waited = context.connection.scalar(statement, context.parameters)
        return super().items(context) if has_waited else []


class LastRemoved(Removed):
    """Closes the entries of rows that are gone, once more where the lock was held again."""

    name = "last_removed"
    stage = "finish"

    def items(self, context: Context) -> list[str]:
        names = {"stage": SettleAgain.stage, "step": SettleAgain.name}
        held = context.connection.scalar(text(_IS_HELD_AGAIN), context.parameters | names)
        return super().items(context) if held else []


def lock(context: Context) -> None:
    """Keep writers off the source tables until the transaction ends; readers are not blocked."""
    connection = context.connection
    names = ", ".join(table.sql for table in context.sources.values())
    # Autovacuum gives way to a session that waits longer than deadlock_timeout: in a mode
    # that no writer notices.
    connection.exec_driver_sql(
        f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS};"
        f" LOCK TABLE {names} IN SHARE UPDATE EXCLUSIVE MODE"
    )
    # The limit of a statement holds for all tables, that of a lock for each.
    connection.exec_driver_sql(
        f"SET LOCAL lock_timeout = {LOCK_MS}; SET LOCAL statement_timeout = {LOCK_MS};"
        f" LOCK TABLE {names} IN SHARE ROW EXCLUSIVE MODE;"
        f" SET LOCAL lock_timeout = {ROW_LOCK_MS}"
    )


def is_any_change_noted(context: Context) -> bool:
    """Whether there is anything to replay, also of a child whose parent is gone."""
    statement = text("SELECT EXISTS (SELECT FROM migration.changes)")
    return bool(context.connection.scalar(statement))


Pending = list[tuple[Replay, list[str]]]


def pending(context: Context) -> Pending:
    """Each replay of the migration with the keys that it has left, in the order of replays."""
    return [(step, step.pending(context)) for step in context.migration.replays]


def next_scope(found: Pending) -> tuple[Replay, Scope]:
    """What is replayed next: parents first; the first replay where nothing is left."""
    step, keys = next((each for each in found if each[1]), found[0])
    return step, Scope(keys=tuple(keys[:KEYS_A_BATCH]), again=True)
