"""Rule 7 checked: every balance equals its log to the cent, every grant is there exactly once."""

from __future__ import annotations

from models.dashboard.scopes import owned
from models.dashboard.sources import USERS
from models.engine.checks.verification import Check, images_of, with_checks
from models.engine.step import Context, Scope, Step

_STANDS, _IN_QUARANTINE = "q.legacy_key IS NULL", "q.legacy_key IS NOT NULL"
_GRANTED = "log.given_now * coalesce(own.grants ->> u.user_type::text, own.grants ->> '*')::numeric"
_CHECKS = (
    Check(
        "balance",
        "users",
        "credits_balance",
        f"{_STANDS} AND u.credits_balance IS DISTINCT FROM coalesce(log.total, 0)",
        "coalesce(log.total, 0)",
        "u.credits_balance",
    ),
    Check("missing", "credit_logs", "grant", f"{_STANDS} AND coalesce(log.grants, 0) = 0"),
    Check("extra", "credit_logs", "grant", "log.grants > 1", "1", "log.grants"),
    Check("extra", "credit_logs", "opening", "log.openings > 1", "1", "log.openings"),
    Check("extra", "credit_logs", "quarantined", f"{_IN_QUARANTINE} AND log.given_now > 0"),
    Check(
        "wrong_value",
        "credit_logs",
        "amount",
        f"log.given_now > 0 AND log.given IS DISTINCT FROM {_GRANTED}",
        _GRANTED,
        "log.given",
    ),
    # Of all log rows of the user: how many are wrong.
    *(
        Check("wrong_value", "credit_logs", column, f"{count} > 0", "'0 wrong rows'", wrong)
        for column, count in (
            ("operation", "log.invalid"),
            ("run_id", "log.unknown_runs"),
            ("balance_after", "log.wrong_after"),
        )
        for wrong in (f"concat({count}, ' wrong rows')",)
    ),
)
_KEYS = {"users": "u.id", "credit_logs": "concat('user ', u.id)"}

# A grant of this run is held against the run's own amounts and the user's type; a user who got
# an earlier grant may have another type by now.
_DISCREPANCIES = """
SELECT found.kind, 'user', u.id::text, found.target_table, found.detail, {values}
FROM {users} u
LEFT JOIN migration.quarantine q
  ON q.entity = 'user' AND q.legacy_key = u.id::text AND q.state IN ('open', 'accepted')
LEFT JOIN migration.runs own ON own.id = :own_run
LEFT JOIN (
  SELECT c.user_id,
    sum(CASE c.operation WHEN 'add' THEN c.amount WHEN 'deduct' THEN -c.amount END) AS total,
    count(*) FILTER (WHERE c.reason = 'migration_grant') AS grants,
    count(*) FILTER (WHERE c.reason = 'migration_opening') AS openings,
    count(*) FILTER (WHERE c.reason = 'migration_grant' AND c.run_id = :own_run) AS given_now,
    sum(c.amount) FILTER (WHERE c.reason = 'migration_grant' AND c.run_id = :own_run) AS given,
    count(*) FILTER (WHERE c.operation NOT IN ('add', 'deduct') OR c.amount < 0
      OR (c.reason = 'migration_grant' AND c.operation <> 'add')) AS invalid,
    count(*) FILTER (WHERE c.reason LIKE 'migration%' AND r.id IS NULL) AS unknown_runs,
    count(*) FILTER (WHERE b.run_id IS NOT NULL AND c.balance_after IS DISTINCT FROM
      coalesce((b.was ->> 'credits_balance')::numeric, 0)
      + CASE c.reason WHEN 'migration_grant' THEN c.amount ELSE 0 END) AS wrong_after
  FROM {credit_logs} c LEFT JOIN migration.runs r ON r.id = c.run_id
  LEFT JOIN migration.before_images b ON b.entity = 'user' AND b.legacy_key = c.user_id::text
    AND b.run_id = c.run_id AND c.reason IN ('migration_grant', 'migration_opening')
    AND {images_scope}
  WHERE {logs_scope}
  GROUP BY c.user_id
) AS log ON log.user_id = u.id
CROSS JOIN LATERAL (VALUES
  {checks}
) AS {fault}
WHERE {scope} AND ({differs}) AND found.differs
"""

_ACCOUNT = "SELECT count(*) AS users_checked FROM {users} u WHERE {scope}"


class Credits(Step):
    """The credit reconciliation: reads only."""

    name = "credits"
    stage = "reconciliation"
    queue = "migration.credits"
    source = USERS
    entity = "user"
    weight = 10
    fix = "producer repair credits --dry-run, then without --dry-run, then: producer retry --wait"

    def differences(self, context: Context, scope: Scope) -> list[str]:
        return [
            context.render(
                with_checks(_DISCREPANCIES, _CHECKS, _KEYS),
                scope=_condition(context, scope),
                logs_scope=owned(context, context.target.table("credit_logs"), "c", scope),
                images_scope=images_of("b", context.sources.users, scope),
            )
        ]

    def account(self, context: Context, scope: Scope) -> str:
        return context.render(_ACCOUNT, scope=_condition(context, scope))


def _condition(context: Context, scope: Scope) -> str:
    return scope.condition("u.id", context.sources.users.columns["id"].base)
