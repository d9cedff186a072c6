"""Alembic's entry: runs on the connection, and in the transaction, of `producer.schema`."""

from alembic import context

from models.ledger import SCHEMA, metadata

connection = context.config.attributes["connection"]
connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
context.configure(
    connection=connection,
    target_metadata=metadata,
    version_table="alembic_version",
    version_table_schema=SCHEMA,
    include_schemas=True,
)
context.run_migrations()
