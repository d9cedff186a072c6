CREATE TABLE migration.selection (
  run_id TEXT NOT NULL REFERENCES migration.runs (id),
  key TEXT NOT NULL,
  PRIMARY KEY (run_id, key)
);

-- Null: the run is of all rows, as every run before was.
ALTER TABLE migration.runs ADD COLUMN selection JSONB;
