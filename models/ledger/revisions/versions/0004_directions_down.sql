UPDATE migration.stages SET position = position + 1000 WHERE direction = 'back';

ALTER TABLE migration.stages DROP COLUMN direction;
