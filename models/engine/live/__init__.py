"""What the application writes meanwhile: captured, replayed, cut over."""
