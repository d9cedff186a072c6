"""What a migration is, and what follows from it. `step` says what an author writes."""
