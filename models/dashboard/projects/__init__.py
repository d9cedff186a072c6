"""Projects: written, replayed, verified, undone."""
