"""Users and their subscriptions: written, replayed, verified, undone."""
