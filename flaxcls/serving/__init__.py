"""A trained classifier behind HTTP: `python -m flaxcls.serve` is its command."""
