"""The events of a run: its states, the ends of its stages, the batches that failed; and tuning.

Revision ID: 0005
"""

from models.ledger.revisions.frozen import apply

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the tables, the triggers that fill them, and what the ledger knows of earlier runs."""
    apply("0005_events.sql")


def downgrade() -> None:
    """Drop them, and all events with them."""
    apply("0005_events_down.sql")
