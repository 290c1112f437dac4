"""A trained classifier behind HTTP: `python -m flaxcls.commands.serve` is its command."""
