"""The ledger: its tables, states, claims, quarantine, revisions."""
