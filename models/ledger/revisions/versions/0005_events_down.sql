DROP TRIGGER note_run ON migration.runs;
DROP TRIGGER note_stage ON migration.stages;
DROP TRIGGER note_batch ON migration.batches;
DROP FUNCTION migration.note_run();
DROP FUNCTION migration.note_stage();
DROP FUNCTION migration.note_batch();
DROP TABLE migration.events, migration.notices;
ALTER TABLE migration.runs DROP COLUMN throttle, DROP COLUMN hours;
