"""From the opening of a run to its end: stages, windows, retry, rollback."""
