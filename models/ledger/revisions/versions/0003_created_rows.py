"""The target rows that declared steps create, each with a hash of what was written.

Revision ID: 0003
"""

from models.ledger.revisions.frozen import apply

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the table."""
    apply("0003_created_rows.sql")


def downgrade() -> None:
    """Drop it."""
    apply("0003_created_rows_down.sql")
