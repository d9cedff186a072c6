"""Messages to people: a run has ended, or needs a human."""
