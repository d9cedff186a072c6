"""The demonstration on generated data."""
