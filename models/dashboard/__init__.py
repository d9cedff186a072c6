"""This migration: what becomes of users, subscriptions and projects."""
