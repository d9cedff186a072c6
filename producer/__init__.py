"""The producer: decides what must be done, and tells the workers."""
