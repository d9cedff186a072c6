CREATE TABLE migration.created_rows (
  entity TEXT NOT NULL,
  source_key TEXT NOT NULL,
  table_name TEXT NOT NULL,
  row_key TEXT NOT NULL,
  run_id TEXT NOT NULL,
  row_hash BIGINT NOT NULL,
  PRIMARY KEY (entity, source_key, table_name, row_key)
);
