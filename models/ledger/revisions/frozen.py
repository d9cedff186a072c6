"""Runs the SQL of a revision. It is frozen text: today's table declarations would change it."""

from __future__ import annotations

from importlib import resources

from alembic import op


def apply(name: str) -> None:
    """Execute one file of `versions`, in the transaction of the upgrade."""
    path = resources.files("models.ledger.revisions") / "versions" / name
    # The driver takes a lone percent sign for a parameter.
    op.get_bind().exec_driver_sql(path.read_text(encoding="utf-8").replace("%", "%%"))
