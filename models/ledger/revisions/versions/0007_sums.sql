ALTER TABLE migration.stages
  ADD COLUMN sums JSONB NOT NULL DEFAULT '{}', ADD COLUMN summed_to BIGINT NOT NULL DEFAULT 0,
  ADD COLUMN summed_until TIMESTAMP WITH TIME ZONE;

-- Finds the batches behind the last one that is summed up. Those that are open or failed, which the
-- old one found, have indexes of their own.
CREATE INDEX batches_in_order ON migration.batches (run_id, stage, id);
DROP INDEX migration.batches_by_stage;
