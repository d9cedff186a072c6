"""PostgreSQL as found: connections, sessions, failures, the catalog, load."""
