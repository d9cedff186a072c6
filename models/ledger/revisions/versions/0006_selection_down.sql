DROP TABLE migration.selection;
ALTER TABLE migration.runs DROP COLUMN selection;
