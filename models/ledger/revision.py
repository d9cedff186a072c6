"""Which revision the ledger is at, and whether it has all that this version of the product needs.

A revision that this version does not know is refused where it matters: `models.preflight.taken`.
"""

from __future__ import annotations

from importlib import resources

from sqlalchemy import Connection, text

from models.errors import Misconfigured

# By the names of the files: to import Alembic, which reads them, takes a tenth of a second.
KNOWN = sorted(
    found.name[:4]
    for found in resources.files("models.ledger.revisions.versions").iterdir()
    if found.name[:4].isdigit() and found.name.endswith(".py")
)
_MAY_READ = text("""
SELECT coalesce(has_table_privilege(to_regclass('migration.alembic_version'), 'SELECT'), false)
""")


def read(connection: Connection) -> str | None:
    """The ledger's revision; None without a ledger, and where the role may not read it."""
    if not connection.scalar(_MAY_READ):
        return None
    found: str | None = connection.scalar(text("SELECT version_num FROM migration.alembic_version"))
    return found


def is_older(connection: Connection) -> bool:
    """Whether the ledger lacks what this version of the product adds to it."""
    return read(connection) in KNOWN[:-1]


def require(connection: Connection) -> None:
    """Raise Misconfigured where the ledger is of an older version of the product."""
    if is_older(connection):
        raise Misconfigured(
            "The ledger is of an older version of this product",
            hint="Run: producer schema upgrade",
        )
