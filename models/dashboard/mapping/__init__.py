"""The mapping file: how one dashboard differs from what the rules name."""
