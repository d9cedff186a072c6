"""Celery and Redis: publishing, chords, the ledger's own keys, who is there."""
