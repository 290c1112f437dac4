"""What a network sees, and what is in it."""
