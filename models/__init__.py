"""What producer and worker both know: settings, legacy tables, target schema, ledger, steps."""
