"""What the settled batches of a stage come to, kept with the stage.

Revision ID: 0007
"""

from models.ledger.revisions.frozen import apply

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the columns, empty: the batches of before count until they are summed up."""
    apply("0007_sums.sql")


def downgrade() -> None:
    """Drop them: the batches are all there still."""
    apply("0007_sums_down.sql")
