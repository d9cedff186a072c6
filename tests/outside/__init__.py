"""Migrations of other people: packages outside the tree, which import `models.engine.api` only."""
