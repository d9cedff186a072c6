CREATE TABLE migration.selection (
  run_id TEXT NOT NULL REFERENCES migration.runs (id),
  key TEXT NOT NULL,
  PRIMARY KEY (run_id, key)
);

-- Null: the run is of all rows, as every run before was.
ALTER TABLE migration.runs ADD COLUMN selection JSONB;

-- Of the step that is being cut: its windows and their rows. Counted from the batches, each window
-- would cost more than the one before it.
ALTER TABLE migration.stages
  ADD COLUMN step_windows INTEGER NOT NULL DEFAULT 0, ADD COLUMN step_rows BIGINT NOT NULL DEFAULT 0;
