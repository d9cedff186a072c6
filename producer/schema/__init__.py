"""The target schema and the ledger: made, upgraded, taken away."""
