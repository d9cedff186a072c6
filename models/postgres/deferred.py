"""Constraints and triggers that wait for COMMIT, checked earlier: an error then has its rows."""

from __future__ import annotations

CHECK_NOW = "SET CONSTRAINTS ALL IMMEDIATE"
# Whether any constraint, or constraint trigger, can wait at all.
IS_ANY = "EXISTS (SELECT FROM pg_constraint WHERE condeferrable)"

# Only what is deferred by default is deferred again. Several constraints of a schema may have one
# name, which PostgreSQL refuses here where one of them is not deferrable.
DEFER_AGAIN = """
DO $$
DECLARE names text;
BEGIN
  SELECT string_agg(DISTINCT quote_ident(n.nspname) || '.' || quote_ident(c.conname), ', ')
  INTO names
  FROM pg_constraint c JOIN pg_namespace n ON n.oid = c.connamespace
  WHERE c.condeferred AND has_schema_privilege(n.oid, 'USAGE') AND NOT EXISTS (
    SELECT FROM pg_constraint o WHERE o.connamespace = c.connamespace AND o.conname = c.conname
      AND NOT o.condeferrable);
  IF names IS NOT NULL THEN
    EXECUTE 'SET CONSTRAINTS ' || names || ' DEFERRED';
  END IF;
EXCEPTION WHEN undefined_object THEN
  -- One was dropped at this moment: the others are checked at once until COMMIT.
  NULL;
END $$
"""
