"""The last of the live writes, taken up and verified while the legacy tables take no write."""

from __future__ import annotations

from models.engine.catch_up import KEYS_A_BATCH, ChangedProjects, ChangedUsers, pending
from models.engine.step import Context, Scope, Step
from models.postgres.database import LOCK_TIMEOUT_MS

# Below PostgreSQL's deadlock_timeout of a second: it is never the application that has to yield.
LOCK_MS = 600
# The same for the row of somebody who has locked it and cannot write now.
ROW_LOCK_MS = 100
# From there to the commit: no writer waits for longer than both together.
HELD_MS = 1_200


class Settle(Step):
    """Runs in rounds of its own (`worker.cutover`): few changes are left, then the lock."""

    name = "settle"
    stage = "finish"
    queue = "migration.control"
    is_settling = True

    def items(self, context: Context) -> list[str]:
        return ["rest"]


def lock(context: Context) -> None:
    """Keep writers off the three legacy tables until the transaction ends; readers go on."""
    connection, legacy = context.connection, context.legacy
    names = ", ".join(table.sql for table in (legacy.users, legacy.subscriptions, legacy.projects))
    # A vacuum of the server's own gives way to whoever waits beyond deadlock_timeout: in a mode
    # that no writer notices.
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
    connection.exec_driver_sql(f"LOCK TABLE {names} IN SHARE UPDATE EXCLUSIVE MODE")
    # The limit of a statement holds for all three tables, that of a lock for each.
    connection.exec_driver_sql(
        f"SET LOCAL lock_timeout = {LOCK_MS}; SET LOCAL statement_timeout = {LOCK_MS}"
    )
    connection.exec_driver_sql(f"LOCK TABLE {names} IN SHARE ROW EXCLUSIVE MODE")
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {ROW_LOCK_MS}")


def pending_keys(context: Context) -> tuple[list[str], list[str]]:
    """The users and the projects with changes that nobody has taken up."""
    users = pending(context, "owner_key", ("user", "subscription"))
    return users, pending(context, "legacy_key", ("project",))


def next_scope(users: list[str], projects: list[str]) -> tuple[Step, Scope]:
    """What is taken up next: users with their subscriptions first, then projects."""
    step, keys = (
        (ChangedProjects(), projects) if projects and not users else (ChangedUsers(), users)
    )
    return step, Scope(keys=tuple(keys[:KEYS_A_BATCH]), again=True)
