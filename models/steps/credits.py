"""Rule 7 checked: every balance equals its log to the cent, every grant is there exactly once."""

from __future__ import annotations

from models.catalog import Table
from models.steps.base import Context, Scope, Step

# A grant of this run is held against the run's own amounts and the user's type; whoever was
# granted earlier may have another type by now.
_DISCREPANCIES = """
SELECT found.kind, 'user', u.id::text, found.target_table, found.detail
FROM {users} u
LEFT JOIN migration.quarantine q
  ON q.entity = 'user' AND q.legacy_key = u.id::text AND q.state IN ('open', 'accepted')
LEFT JOIN LATERAL (
  SELECT sum(CASE c.operation WHEN 'add' THEN c.amount WHEN 'deduct' THEN -c.amount END) AS total,
    count(*) FILTER (WHERE c.reason = 'migration_grant') AS grants,
    count(*) FILTER (WHERE c.reason = 'migration_opening') AS openings,
    count(*) FILTER (WHERE c.reason = 'migration_grant' AND c.run_id = :own_run
      AND c.amount IS DISTINCT FROM coalesce(
      r.grants ->> u.user_type::text, r.grants ->> '*')::numeric) AS wrong_grants,
    count(*) FILTER (WHERE c.reason = 'migration_grant' AND c.run_id = :own_run) AS given_now,
    count(*) FILTER (WHERE c.operation NOT IN ('add', 'deduct') OR c.amount < 0
      OR (c.reason = 'migration_grant' AND c.operation <> 'add')) AS invalid,
    count(*) FILTER (WHERE c.reason LIKE 'migration%' AND r.id IS NULL) AS unknown_runs,
    count(*) FILTER (WHERE b.run_id IS NOT NULL AND c.balance_after IS DISTINCT FROM
      coalesce((b.was ->> 'credits_balance')::numeric, 0)
      + CASE c.reason WHEN 'migration_grant' THEN c.amount ELSE 0 END) AS wrong_after
  FROM {credit_logs} c LEFT JOIN migration.runs r ON r.id = c.run_id
  LEFT JOIN migration.before_images b ON b.entity = 'user' AND b.legacy_key = u.id::text
    AND b.run_id = c.run_id AND c.reason IN ('migration_grant', 'migration_opening')
  WHERE c.user_id = u.id
) AS log ON true
CROSS JOIN LATERAL (
  SELECT 'balance' AS kind, 'users' AS target_table, 'credits_balance' AS detail
  WHERE q.legacy_key IS NULL AND u.credits_balance IS DISTINCT FROM coalesce(log.total, 0)
  UNION ALL SELECT 'missing', 'credit_logs', 'grant'
  WHERE q.legacy_key IS NULL AND log.grants = 0
  UNION ALL SELECT 'extra', 'credit_logs', 'grant' WHERE log.grants > 1
  UNION ALL SELECT 'extra', 'credit_logs', 'opening' WHERE log.openings > 1
  UNION ALL SELECT 'extra', 'credit_logs', 'set aside'
  WHERE q.legacy_key IS NOT NULL AND log.given_now > 0
  UNION ALL SELECT 'wrong_value', 'credit_logs', 'amount' WHERE log.wrong_grants > 0
  UNION ALL SELECT 'wrong_value', 'credit_logs', 'operation' WHERE log.invalid > 0
  UNION ALL SELECT 'wrong_value', 'credit_logs', 'run_id' WHERE log.unknown_runs > 0
  UNION ALL SELECT 'wrong_value', 'credit_logs', 'balance_after' WHERE log.wrong_after > 0
) AS found
WHERE {scope}
"""

_ACCOUNT = "SELECT count(*) AS users_checked FROM {users} u WHERE {scope}"


class Credits(Step):
    """The credit reconciliation: reads only."""

    name = "credits"
    stage = "reconciliation"
    queue = "migration.credits"
    entity = "user"

    def source(self, context: Context) -> Table:
        return context.legacy.users

    def differences(self, context: Context, scope: Scope) -> list[str]:
        return [context.render(_DISCREPANCIES, scope=_condition(context, scope))]

    def account(self, context: Context, scope: Scope) -> str:
        return context.render(_ACCOUNT, scope=_condition(context, scope))


def _condition(context: Context, scope: Scope) -> str:
    return scope.condition("u.id", context.legacy.users.columns["id"].base)
