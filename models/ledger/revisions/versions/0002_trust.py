"""The ledger's identity, a run's tables as resolved, who paused it, a quarantined row's hash.

Revision ID: 0002
"""

from models.ledger.revisions.frozen import apply

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add them; rows that are there keep nulls."""
    apply("0002_trust.sql")


def downgrade() -> None:
    """Drop them."""
    apply("0002_trust_down.sql")
