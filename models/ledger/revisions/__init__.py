"""Alembic's revisions of the schema `migration`; the dashboard's own revisions are not touched."""
