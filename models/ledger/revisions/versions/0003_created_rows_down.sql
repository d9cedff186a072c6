DROP TABLE migration.created_rows;
