CREATE TABLE migration.ledger (
  is_only BOOLEAN DEFAULT true NOT NULL CHECK (is_only),
  id TEXT NOT NULL,
  database TEXT NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  PRIMARY KEY (is_only)
);

ALTER TABLE migration.runs
  ADD COLUMN relations JSONB,
  ADD COLUMN paused_by TEXT,
  ADD COLUMN paused_at TIMESTAMP WITH TIME ZONE;

ALTER TABLE migration.quarantine ADD COLUMN row_hash BIGINT;
