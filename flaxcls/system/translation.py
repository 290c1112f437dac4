"""The language of pages: sentences are written in English, and a catalogue has each in another.

A catalogue is a file of `languages/` that is named by its language as BCP 47 has it: `zh.toml`,
`pt-BR.toml`. It has a table for each kind of page, {English: translation}, with the same
{placeholders}. A new file is a new language, wherever one can be chosen.
"""

import functools
import pathlib
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

FOLDER = pathlib.Path(__file__).parent / 'languages'
DEFAULT = 'en'


def _fill(template: str, values: Mapping[str, Any]) -> str:
    return template.format(**values) if values else template  # What takes none may have braces.


class Message(str):
    """An English sentence that remembers what it was made of, so that a page may translate it.

    Attributes:
      template: the sentence with {placeholders}, as str.format takes them.
      values: what they stand for; may be messages themselves.
    """

    template: str
    values: Mapping[str, Any]

    def __new__(cls, template: str, **values: Any) -> 'Message':
        made = super().__new__(cls, _fill(template, values))
        made.template, made.values = template, values
        return made

    def __getnewargs_ex__(self) -> tuple[tuple[str], Mapping[str, Any]]:
        return (self.template,), self.values


class Translation(NamedTuple):
    """The sentences of a kind of page in one language.

    Attributes:
      language: as BCP 47 and the attribute `lang` have it.
      texts: {English: translation}; what is not in it stays English.
    """

    language: str
    texts: Mapping[str, str]

    def __call__(self, text: str, **values: Any) -> str:
        """Returns a text, or a Message, in this language, with values for {placeholders}."""
        if isinstance(text, Message):
            text, values = text.template, text.values
        values = {
            name: self(value) if isinstance(value, Message) else value
            for name, value in values.items()
        }
        return _fill(self.look_up(text), values)

    def look_up(self, text: str) -> str:
        """Returns a text in this language, with its {placeholders}."""
        return self.texts.get(text, text)

    def knows(self, text: str) -> bool:
        """Returns whether a text, or a Message, has a translation."""
        return getattr(text, 'template', text) in self.texts


ENGLISH = Translation(DEFAULT, {})


@functools.cache
def list_languages() -> tuple[str, ...]:
    """Returns the languages that a page can be in, English first."""
    return (DEFAULT, *sorted(path.stem for path in FOLDER.glob('*.toml')))


def load_translation(language: str, page: str) -> Translation:
    """Returns the sentences of a kind of page.

    Args:
      language: one of list_languages().
      page: a table of the catalogues.
    """
    return ENGLISH if language == DEFAULT else Translation(language, load_catalogue(language)[page])


@functools.cache
def load_catalogue(language: str) -> Mapping[str, Mapping[str, str]]:
    """Returns {kind of page: {English: translation}} of a language other than English."""
    return tomllib.loads((FOLDER / f'{language}.toml').read_text(encoding='utf-8'))


def choose_language(wanted: Sequence[str]) -> str:
    """Returns the first language of a reader that there is, or English.

    Args:
      wanted: tags of BCP 47, the best first; zh is taken for zh-Hans-CN (RFC 4647, section 3.4).
    """
    known = {language.lower(): language for language in list_languages()}
    for tag in wanted:
        parts = tag.lower().split('-')
        for end in range(len(parts), 0, -1):
            if (found := '-'.join(parts[:end])) in known:
                return known[found]
    return DEFAULT
