"""Options of a run: rows, files, validation."""
