"""Credits by type of user, for the report of a run."""

from __future__ import annotations

from sqlalchemy import Connection, text

from models.engine.checks.answers import Summary
from models.engine.schema.target import Target
from models.engine.source import Sources

TITLE = "Credits"
COLUMNS = ("User type", "Users", "Granted by this run", "In the log", "Balances")
_CREDITS = """
SELECT coalesce(u.user_type::text, 'none') AS name, count(*) AS users,
  coalesce(sum(l.granted), 0) AS granted, coalesce(sum(l.total), 0) AS logged,
  coalesce(sum(u.credits_balance), 0) AS balances
FROM {users} u LEFT JOIN (
  SELECT c.user_id,
    sum(c.amount) FILTER (WHERE c.reason = 'migration_grant' AND c.run_id = :run_id) AS granted,
    sum(CASE c.operation WHEN 'add' THEN c.amount WHEN 'deduct' THEN -c.amount END) AS total
  FROM {credit_logs} c GROUP BY c.user_id
) AS l ON l.user_id = u.id
GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 50
"""


def credits_by_type(
    connection: Connection, sources: Sources, target: Target, run_id: str
) -> Summary:
    """What the run granted, what the log adds up to and what the balances do, by type of user."""
    if not {"user_type", "credits_balance"} <= sources.users.columns.keys():
        return Summary(TITLE, missing="The users have no credits.")
    logs = target.table("credit_logs")
    statement = text(_CREDITS.format(users=sources.users.sql, credit_logs=logs.sql))
    found = [tuple(row) for row in connection.execute(statement, {"run_id": run_id})]
    sums = tuple(sum(values) for values in list(zip(*found, strict=True))[1:])
    rows = (*found, ("all", *sums)) if found else ()
    wrong = tuple(place for place, (*_, logged, balances) in enumerate(rows) if logged != balances)
    return Summary(TITLE, COLUMNS, rows, wrong=wrong)
