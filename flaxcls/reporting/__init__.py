"""The parts of the page that `flaxcls report` writes."""
