"""Before a run: what is in the way, a trial, a rehearsal, speed and health."""
