"""What commands report and `--json` prints, whether they succeed or fail."""
