"""The archive for the people who help: what is known of a run, without secrets and row data."""
