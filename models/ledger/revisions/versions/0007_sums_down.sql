CREATE INDEX batches_by_stage ON migration.batches (run_id, stage, state);
DROP INDEX migration.batches_in_order;
ALTER TABLE migration.stages
  DROP COLUMN sums, DROP COLUMN summed_to, DROP COLUMN summed_until;
