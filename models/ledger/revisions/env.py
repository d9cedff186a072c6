"""Alembic's entry: runs on the connection, and in the transaction, of `producer.schema.upgrade`."""

import sqlalchemy as sa
from alembic import context

from models.ledger.tables import SCHEMA, metadata

connection = context.config.attributes["connection"]
# IF NOT EXISTS asks for the privilege also where there is nothing to do.
if not connection.scalar(sa.text("SELECT to_regnamespace(:name)"), {"name": SCHEMA}):
    connection.exec_driver_sql(f"CREATE SCHEMA {SCHEMA}")
context.configure(
    connection=connection,
    target_metadata=metadata,
    version_table="alembic_version",
    version_table_schema=SCHEMA,
    include_schemas=True,
)
context.run_migrations()
