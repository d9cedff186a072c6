"""SQL that several steps of the dashboard share: owners, the oldest suite, a user's rows."""

from __future__ import annotations

from models.engine.source import SourceTable
from models.engine.step import Context, Scope
from models.postgres.catalog import INTEGER_TYPES, Table

FRAGMENTS = {
    # Rule 4: the suite that the user `u` keeps.
    "oldest_suite": "SELECT o.id FROM {ai_suites} o WHERE o.user_id = u.id"
    " ORDER BY o.created_at, o.id LIMIT 1",
    # Of the project `p`. OFFSET keeps it a look by key: as a join it may begin with the first of
    # all users.
    "project_owner": "SELECT o.id FROM {users} o WHERE o.id = p.user_id OFFSET 0",
}


def owned(context: Context, table: Table, alias: str, scope: Scope) -> str:
    """SQL condition: the row under this alias belongs to a user of the scope.

    A range of users is one of their rows too, and one range of an index, where both columns
    sort alike.
    """
    users = context.sources.users
    if scope.keys is not None or sorts_as_owners(users, table):
        return near(context, table, alias, scope)
    of_scope = scope.condition("owner.id", users.key.base)
    return f"{alias}.user_id IN (SELECT owner.id FROM {users.sql} owner WHERE {of_scope})"


def near(context: Context, table: Table, alias: str, scope: Scope) -> str:
    """The same for a row that is joined with its owner besides; `true` where no range helps."""
    users = context.sources.users
    if scope.keys is None and not sorts_as_owners(users, table):
        return "true"
    return scope.condition(f"{alias}.user_id", users.key.base)


def sorts_as_owners(users: SourceTable, table: Table) -> bool:
    """Whether a range of users is a range of this table's `user_id` too."""
    key, column = users.key, table.columns["user_id"]
    if {key.base, column.base} <= INTEGER_TYPES:
        return True
    return (column.base, column.collation) == (key.base, key.collation)
