ALTER TABLE migration.stages DROP COLUMN direction;
