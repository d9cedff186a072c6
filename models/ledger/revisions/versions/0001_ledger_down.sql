-- The view is made by every upgrade: `producer.backlog`.
DROP VIEW IF EXISTS migration.backlog;
DROP FUNCTION migration.try_jsonb(text);
DROP FUNCTION migration.capture() CASCADE;
DROP FUNCTION migration.keep_audit() CASCADE;
DROP TABLE migration.batches, migration.stages, migration.runs, migration.quarantine,
  migration.differences, migration.before_images, migration.conflicts, migration.changes,
  migration.audit, migration.recoveries, migration.schema_objects;
