ALTER TABLE migration.stages ADD COLUMN direction TEXT DEFAULT 'forward' NOT NULL;

-- Positions from 1000 on told a rollback before. They stay, for workers of that version.
UPDATE migration.stages SET direction = 'back' WHERE position >= 1000;

UPDATE migration.stages r SET position = v.position FROM migration.stages v
WHERE r.name = 'reconciliation' AND v.name = 'verification' AND v.run_id = r.run_id;

-- No default: an INSERT that does not name the direction is a mistake.
ALTER TABLE migration.stages ALTER COLUMN direction DROP DEFAULT;
