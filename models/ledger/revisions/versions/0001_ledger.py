"""The ledger: runs, stages, batches, quarantine, differences, before-images.

Revision ID: 0001
"""

from models.ledger.revisions.frozen import apply

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the ledger's tables and functions."""
    apply("0001_ledger.sql")


def downgrade() -> None:
    """Drop them."""
    apply("0001_ledger_down.sql")
