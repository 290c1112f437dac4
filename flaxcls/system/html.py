"""Pages from templates, with everything that is put into them escaped."""

import pathlib
from typing import Any

import jinja2
from markupsafe import Markup

from flaxcls.system.translation import ENGLISH, Translation


def create_environment(
    folder: pathlib.Path, translate: Translation = ENGLISH
) -> jinja2.Environment:
    """Returns the environment of the templates in a folder; what they lack is an error.

    In templates `_('{count} of them', count=3)` is a text, which is HTML, in the language of
    `translate`, with the values escaped; `language` is the attribute `lang`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def look_up_and_fill(text: str, **values: Any) -> Markup:
        return Markup(translate.look_up(text)).format(**values)

    environment.globals |= {'_': look_up_and_fill, 'language': translate.language}
    return environment
