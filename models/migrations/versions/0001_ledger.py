"""The ledger: runs, stages, batches, quarantine, differences, before-images.

Revision ID: 0001
"""

from alembic import op

from models.ledger import KEEP_AUDIT, TRY_JSONB, metadata
from models.steps.capture import FUNCTION

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the ledger's tables and functions."""
    metadata.create_all(op.get_bind(), checkfirst=False)
    op.execute(TRY_JSONB)
    op.execute(FUNCTION)
    op.execute(KEEP_AUDIT)


def downgrade() -> None:
    """Drop them."""
    # Made by every upgrade: `producer.backlog`.
    op.execute("DROP VIEW IF EXISTS migration.backlog")
    op.execute("DROP FUNCTION migration.try_jsonb(text)")
    op.execute("DROP FUNCTION migration.capture() CASCADE")
    op.execute("DROP FUNCTION migration.keep_audit() CASCADE")
    metadata.drop_all(op.get_bind(), checkfirst=False)
