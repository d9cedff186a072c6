"""The target schema: declared, as found, its indexes and constraints."""
