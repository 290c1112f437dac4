"""Runs judged and compared."""
