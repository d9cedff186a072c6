ALTER TABLE migration.quarantine DROP COLUMN row_hash;
ALTER TABLE migration.runs DROP COLUMN relations, DROP COLUMN paused_by, DROP COLUMN paused_at;
DROP FUNCTION IF EXISTS migration.ledger_id();
DROP FUNCTION IF EXISTS migration.database();
DROP TABLE migration.ledger;
