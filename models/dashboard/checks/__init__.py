"""What is judged of the dashboard's rows: before a run, and after it."""
