"""What the verifications of users and projects have in common; the steps share none of it."""

from __future__ import annotations

from models.catalog import TEXT_TYPES
from models.steps.base import Context

# Over `a` (assignment), `l` (usage log) and `e` (expected: user_id, tool_id), each perhaps null.
_HANGING = """
  UNION ALL SELECT 'wrong_value', 'tool_assignments', v.name
  FROM (VALUES
    ('assigned_by', a.assigned_by::text IS DISTINCT FROM {assigned_by}),
    ('permissions', a.permissions::jsonb IS DISTINCT FROM
      jsonb_build_object('full_access', true)),
    ('expires_at', a.expires_at IS NOT NULL)
  ) AS v(name, differs) WHERE a.tool_id IS NOT NULL AND v.differs
    AND (l.id IS NULL OR l.session_id = :own_run)
  UNION ALL SELECT 'wrong_owner', 'tool_usage_logs', NULL
  WHERE l.id IS NOT NULL AND (l.user_id <> e.user_id OR l.tool_id <> e.tool_id)
  UNION ALL SELECT 'wrong_value', 'tool_usage_logs', v.name
  FROM (VALUES
    ('action', l.action IS DISTINCT FROM 'migration'),
    ('credits_used', l.credits_used IS DISTINCT FROM 0),
    ('status', l.status IS DISTINCT FROM 'completed')
  ) AS v(name, differs) WHERE l.id IS NOT NULL AND v.differs
"""


def hanging_rows(context: Context) -> str:
    """SQL that compares a tool's assignment and usage log with what they must be."""
    return _HANGING.format(assigned_by=system_assigner(context))


def system_assigner(context: Context) -> str:
    """What `assigned_by` must hold: null where it can only hold a user's key."""
    table = context.target.table("tool_assignments")
    points_at_user = table.key_on("assigned_by") is not None
    is_text = table.columns["assigned_by"].base in TEXT_TYPES
    return "NULL" if points_at_user or not is_text else "'system'"
