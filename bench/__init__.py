"""Benchmarks: the product against what one would write by hand (`make bench`)."""
