"""Writes the page of common mistakes and its Chinese translation from results/rows.toml.

  python -m benchmarks.common_mistakes --out=docs

Both come from the same entries, so that neither has a correction that the other lacks.
"""

import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from benchmarks.ledger import load_table
from flaxcls.errors import UserError
from flaxcls.system.cli import CommandParser, run_command
from flaxcls.system.files import write_atomically

COMMAND = 'python -m benchmarks.common_mistakes --out=docs'

# What a source is called -> where it is.
_ADDRESSES = {
    r'arXiv:(\d{4}\.\d{4,5})': r'https://arxiv.org/abs/\1',
    r'Krizhevsky et al\. 2012': (
        'https://proceedings.neurips.cc/paper/2012/hash/'
        'c399862d3b9d6b76c8436e924a68c45b-Abstract.html'
    ),
}


class Mistake(NamedTuple):
    """A claim that introductions repeat, with the fields of results/rows.toml."""

    about: str
    claim: str
    claim_zh: str
    fact: str
    fact_zh: str
    source: str
    source_zh: str
    command: str = ''
    shows: str = ''
    shows_zh: str = ''
    networks: Sequence[str] = ()

    def text(self, field: str, page: 'Page') -> str:
        """Returns a field in the language of a page."""
        return getattr(self, field + page.suffix)


class Page(NamedTuple):
    """What a page says besides its entries, with the fields of results/rows.toml."""

    suffix: str
    file: str
    link: str
    title: str
    introduction: str
    claim: str
    source: str


def load(folder: pathlib.Path) -> tuple[list[Page], list[Mistake]]:
    """Returns the pages, a page for each language, and the entries of the ledger in `folder`.

    Raises:
      UserError: there is no ledger there, or its fields are not those that its comments name.
    """
    return load_table(folder, 'pages', Page), load_table(folder, 'mistakes', Mistake)


def render(mistakes: Sequence[Mistake], page: Page) -> str:
    """Returns a page: a heading for each network, and below it one for each claim about it."""
    parts = [
        f'# {page.title}',
        page.link,
        f'<!-- Written by: {COMMAND} -->',
        page.introduction,
    ]
    for about in dict.fromkeys(mistake.about for mistake in mistakes):
        parts.append(f'## {about}')
        for mistake in mistakes:
            if mistake.about == about:
                parts += _entry(mistake, page)
    return '\n\n'.join(parts) + '\n'


def _entry(mistake: Mistake, page: Page) -> Iterator[str]:
    yield f'### {page.claim.format(mistake.text("claim", page))}'
    yield _link_papers(mistake.text('fact', page))
    if mistake.command:
        yield f'```\n{mistake.command.strip()}\n```'
        yield mistake.text('shows', page)
    yield page.source.format(_link_papers(mistake.text('source', page)))


def _link_papers(text: str) -> str:
    for name, address in _ADDRESSES.items():
        text = re.sub(name, rf'[\g<0>]({address})', text)
    return text


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('python -m benchmarks.common_mistakes', __doc__)
    parser.add_argument('--results', default='results', help='folder of the ledger')
    parser.add_argument('--out', required=True, help='folder of the pages')
    flags = parser.parse_args(argv)
    pages, mistakes = load(pathlib.Path(flags.results).expanduser())
    out = pathlib.Path(flags.out).expanduser()
    if not out.is_dir():
        raise UserError(f'--out={flags.out} is no folder; name one that exists.')
    for page in pages:
        write_atomically(out / page.file, render(mistakes, page))
        print(f'wrote {out / page.file}')


if __name__ == '__main__':
    run_command(main)
