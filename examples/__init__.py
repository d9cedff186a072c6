"""Two migrations on the engine, beside the dashboard's: see docs/your-own-migration.md."""
