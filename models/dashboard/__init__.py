"""This migration: what becomes of users, subscriptions and projects."""


def __getattr__(name: str) -> object:
    """`models.dashboard:MIGRATION`, loaded when it is asked for: it imports every module here."""
    if name == "MIGRATION":
        from models.dashboard.migration import MIGRATION

        return MIGRATION
    raise AttributeError(name)
