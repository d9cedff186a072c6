"""The selection of a canary: the keys of the rows that it migrates.

Revision ID: 0006
"""

from models.ledger.revisions.frozen import apply

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the table and the column of a run."""
    apply("0006_selection.sql")


def downgrade() -> None:
    """Drop them: a canary counts as a full run then."""
    apply("0006_selection_down.sql")
