"""What can be read before a run, and is in its way."""
