"""Networks as their papers draw them, by name."""
