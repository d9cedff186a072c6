"""The guide's data integrity check, over the rows that the application wrote, too.

Queries that list the keys of rows that break a rule, by what those rows are. The verification
compares only what legacy rows became, so that none of these is a difference.
"""

from __future__ import annotations

from models.ledger.quarantine import is_quarantined

_IS_QUARANTINED = is_quarantined("'user'", "u.id")

INTEGRITY = {
    "users without a type, a tier or a balance": f"""
SELECT u.id FROM {{users}} u
WHERE (u.user_type IS NULL OR u.billing_tier IS NULL OR u.credits_balance IS NULL)
  AND NOT {_IS_QUARANTINED}""",
    "users without a suite": f"""
SELECT u.id FROM {{users}} u
WHERE NOT EXISTS (SELECT FROM {{ai_suites}} s WHERE s.user_id = u.id)
  AND NOT {_IS_QUARANTINED}""",
    "users with a negative balance": """
SELECT u.id FROM {users} u WHERE u.credits_balance < 0""",
    "users of a missing organization or department": """
SELECT u.id FROM {users} u
WHERE u.organization_id IS NOT NULL
    AND NOT EXISTS (SELECT FROM {organizations} o WHERE o.id = u.organization_id)
  OR u.department_id IS NOT NULL
    AND NOT EXISTS (SELECT FROM {departments} d WHERE d.id = u.department_id)""",
    "suites without a user": """
SELECT s.id FROM {ai_suites} s
WHERE NOT EXISTS (SELECT FROM {users} u WHERE u.id = s.user_id)""",
    "tools without a tier, or without a cost of at least 0": """
SELECT t.id FROM {ai_tools} t
WHERE t.pricing_tier IS NULL OR t.credits_cost IS NULL OR t.credits_cost < 0""",
    "tools without a suite": """
SELECT t.id FROM {ai_tools} t
WHERE NOT EXISTS (SELECT FROM {ai_suites} s WHERE s.id = t.suite_id)""",
    "assignments without a user or a tool": """
SELECT a.tool_id || ' ' || a.user_id FROM {tool_assignments} a
WHERE NOT EXISTS (SELECT FROM {users} u WHERE u.id = a.user_id)
  OR NOT EXISTS (SELECT FROM {ai_tools} t WHERE t.id = a.tool_id)""",
    "usage logs without a user or a tool": """
SELECT l.id FROM {tool_usage_logs} l
WHERE NOT EXISTS (SELECT FROM {users} u WHERE u.id = l.user_id)
  OR NOT EXISTS (SELECT FROM {ai_tools} t WHERE t.id = l.tool_id)""",
    "credit logs without a user": """
SELECT c.id FROM {credit_logs} c
WHERE NOT EXISTS (SELECT FROM {users} u WHERE u.id = c.user_id)""",
    "listings without a tool": """
SELECT m.id FROM {marketplace_listings} m
WHERE NOT EXISTS (SELECT FROM {ai_tools} t WHERE t.id = m.tool_id)""",
}
