"""What is checked of a run: what must be there, counts, the quarantine."""
