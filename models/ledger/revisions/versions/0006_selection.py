"""The selection of a canary: the keys of its rows. And how much of a stage's step was cut.

Revision ID: 0006
"""

from models.ledger.revisions.frozen import apply

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the table, and the columns of a run and of a stage."""
    apply("0006_selection.sql")


def downgrade() -> None:
    """Drop them: a canary counts as a full run then."""
    apply("0006_selection_down.sql")
