"""The ledger: runs, stages, batches, quarantine, differences, before-images.

Revision ID: 0001
"""

from alembic import op

from models.ledger import TRY_JSONB, metadata

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the ledger's tables and the function that reads doubtful JSON."""
    metadata.create_all(op.get_bind(), checkfirst=False)
    op.execute(TRY_JSONB)


def downgrade() -> None:
    """Drop them."""
    op.execute("DROP FUNCTION migration.try_jsonb(text)")
    metadata.drop_all(op.get_bind(), checkfirst=False)
