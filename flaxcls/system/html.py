"""Pages from templates, with everything that is put into them escaped."""

import pathlib

import jinja2


def create_environment(folder: pathlib.Path) -> jinja2.Environment:
    """Returns the environment of the templates in a folder; what they lack is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
