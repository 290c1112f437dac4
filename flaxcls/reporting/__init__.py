"""The parts of the page that `flaxcls.commands.report` writes."""
