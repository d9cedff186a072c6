"""What a run waits for, in plain words."""
