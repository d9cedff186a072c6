"""The archive for whoever helps: what is known of a run, without secrets and without row data."""
