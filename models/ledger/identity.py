"""Which ledger this is: a random id, and the database that it was written in.

A copy of the database (a template, a dump restored elsewhere) holds the id of the original. There
`migration.ledger_id()` gives null until `settle` has written an id of the copy's own.
"""

from __future__ import annotations

import secrets

from sqlalchemy import Connection, text

# Both run as the ledger's owner, so that every role sees the same parts. The system identifier is
# empty where that role may not read it; a standby that takes over keeps it, and the oid.
FUNCTIONS = """
CREATE OR REPLACE FUNCTION migration.database() RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  cluster text := '';
BEGIN
  BEGIN
    SELECT system_identifier::text INTO cluster FROM pg_control_system();
  EXCEPTION WHEN insufficient_privilege OR undefined_function THEN
    NULL;
  END;
  RETURN (SELECT concat_ws('/', cluster, oid, datname) FROM pg_database
    WHERE datname = current_database());
END $$;
CREATE OR REPLACE FUNCTION migration.ledger_id() RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  written text;
  here text := migration.database();
  ledger text;
BEGIN
  SELECT l.id, l.database INTO ledger, written FROM migration.ledger l;
  -- By the oid and the cluster, or, where one of them has no cluster, by the oid and the name.
  IF split_part(written, '/', 2) = split_part(here, '/', 2)
    AND (CASE WHEN '' IN (split_part(written, '/', 1), split_part(here, '/', 1))
      THEN regexp_replace(written, '^[^/]*/', '') = regexp_replace(here, '^[^/]*/', '')
      ELSE split_part(written, '/', 1) = split_part(here, '/', 1) END) THEN
    RETURN ledger;
  END IF;
  RETURN NULL;
END $$
"""


def read(connection: Connection) -> str | None:
    """The ledger's id; None while there is no ledger, or one that is a copy's."""
    there = connection.scalar(text("SELECT to_regprocedure('migration.ledger_id()')"))
    if there is None:
        return None
    found: str | None = connection.scalar(text("SELECT migration.ledger_id()"))
    return found


def settle(connection: Connection) -> None:
    """Give a new ledger its id, and one that finds itself in a copied database another one."""
    values = {"id": secrets.token_hex(8)}
    connection.execute(
        text(
            "INSERT INTO migration.ledger (id, database) VALUES (:id, migration.database())"
            " ON CONFLICT (is_only) DO NOTHING"
        ),
        values,
    )
    connection.execute(
        text(
            "UPDATE migration.ledger SET id = :id, database = migration.database(),"
            " created_at = clock_timestamp() WHERE migration.ledger_id() IS NULL"
        ),
        values,
    )
