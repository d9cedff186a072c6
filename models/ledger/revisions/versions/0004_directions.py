"""A direction for each stage, and one position for verification and reconciliation.

Revision ID: 0004
"""

from models.ledger.revisions.frozen import apply

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the column; the stages of open runs get theirs, and go on."""
    apply("0004_directions.sql")


def downgrade() -> None:
    """Drop it: a rollback's stages are told by their positions again."""
    apply("0004_directions_down.sql")
