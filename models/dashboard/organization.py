"""Rule 2: one organization with one department, once, for the users who have none."""

from __future__ import annotations

from sqlalchemy import text

from models.dashboard import ids, made
from models.dashboard.checks import expected
from models.engine.step import Context, Counts, Scope, Step

# An organization of that name that is there already is adopted; the fixed ids make two writers
# at the same moment meet on the primary key.
_CREATE = """
WITH existing AS (
  SELECT id FROM {organizations} WHERE name = {default_organization}
  ORDER BY created_at, id LIMIT 1
), organization AS (
  INSERT INTO {organizations}
    (id, name, type, subscription_tier, credits_balance, settings, created_at, updated_at)
  SELECT {organization}, {default_organization}, 'education',
         CAST('free' AS {tier_type}), 0, '{{}}', now(), now()
  WHERE NOT EXISTS (SELECT FROM existing)
  ON CONFLICT (id) DO NOTHING
  RETURNING id
), department AS (
  INSERT INTO {departments}
    (id, organization_id, name, description, settings, created_at, updated_at)
  SELECT {department}, owner.id, {default_department}, 'Default department', '{{}}', now(), now()
  FROM (SELECT id FROM existing UNION ALL SELECT id FROM organization) AS owner
  WHERE NOT EXISTS (SELECT FROM {departments} d
                    WHERE d.organization_id = owner.id AND d.name = {default_department})
  ON CONFLICT (id) DO NOTHING
  RETURNING id
)
SELECT (SELECT count(*) FROM organization) AS organizations,
       (SELECT count(*) FROM department) AS departments
"""

_DIFFERENCES = """
SELECT 'missing', 'organization', 'default', 'organizations', NULL::text
FROM ({home}) AS home WHERE home.organization_id IS NULL
UNION ALL
SELECT 'missing', 'organization', 'default', 'departments', NULL
FROM ({home}) AS home WHERE home.department_id IS NULL
UNION ALL
SELECT 'extra', 'organization', o.id::text, 'organizations', NULL
FROM {organizations} o
WHERE o.id = {organization} AND EXISTS (
  SELECT FROM {organizations} e
  WHERE e.name = o.name AND (e.created_at, e.id) < (o.created_at, o.id))
"""


class Organization(Step):
    """Creates the default organization and its department."""

    name = "organization"
    stage = "organization"
    queue = "migration.control"
    is_verified = True
    undone_by = "undo_rest"
    is_constant = True

    def items(self, context: Context) -> list[str]:
        return ["default"]

    def can_try(self, context: Context) -> bool:
        # Workers of other queues make no organization.
        owner = text("SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = :oid")
        table = context.target.table("organizations")
        return bool(context.connection.scalar(owner, {"oid": table.oid}))

    def apply(self, context: Context, scope: Scope) -> Counts:
        names = {
            **made.expressions(context),
            "tier_type": context.type_of("organizations", "subscription_tier"),
            "organization": ids.organization(context.sources),
            "department": ids.department(context.sources),
        }
        row = context.execute(_CREATE, scope, **names).one()
        return {"rows": dict(row._mapping)}

    def differences(self, context: Context, scope: Scope) -> list[str]:
        names = expected.expressions(context)
        own = ids.organization(context.sources)
        return [context.render(_DIFFERENCES, organization=own, **names)]
