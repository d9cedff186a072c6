"""Backups of the database and Redis, and their way back."""
