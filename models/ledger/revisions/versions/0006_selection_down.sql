DROP TABLE migration.selection;
ALTER TABLE migration.runs DROP COLUMN selection;
ALTER TABLE migration.stages DROP COLUMN step_windows, DROP COLUMN step_rows;
