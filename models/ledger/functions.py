"""SQL functions of the ledger that every schema upgrade makes anew."""

from __future__ import annotations

# What jsonb refuses (malformed text, \u0000, numbers out of range) gives null instead of an error.
# PostgreSQL 16 has pg_input_is_valid(); this works from 12 on.
TRY_JSONB = """
CREATE OR REPLACE FUNCTION migration.try_jsonb(document text) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
BEGIN
  RETURN document::jsonb;
EXCEPTION WHEN data_exception OR program_limit_exceeded OR statement_too_complex THEN
  RETURN NULL;
END $$
"""
