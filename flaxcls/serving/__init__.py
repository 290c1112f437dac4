"""A trained classifier behind HTTP: `flaxcls serve`."""
