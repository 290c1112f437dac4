"""The text of pages and notebooks, as Markdown's tokens."""

import json
import pathlib
import re

from markdown_it import MarkdownIt
from markdown_it.token import Token


def read_parts(path: pathlib.Path) -> list[list[Token]]:
    """Returns the tokens of each section of a page, or of each cell of text of a notebook."""
    if path.suffix == '.ipynb':
        return _texts(path)
    return _sections(path)


def cells(path: pathlib.Path, kind: str) -> list[dict]:
    """Returns the cells of one kind, 'markdown' or 'code', of a notebook."""
    found = json.loads(path.read_text(encoding='utf-8'))['cells']
    return [cell for cell in found if cell['cell_type'] == kind]


def inlines(tokens: list[Token]) -> list[Token]:
    """Returns the paragraphs, headings and cells of tables."""
    return [token for token in tokens if token.type == 'inline']


def prose(inline: Token) -> str:
    """Returns what one reads of a paragraph, heading or cell of a table, without its code."""
    words = []
    for child in inline.children:
        if child.type == 'code_inline':
            words.append('`')
        elif child.type in ('softbreak', 'hardbreak'):
            words.append('\n')
        else:
            words.append(child.content)
    return ''.join(words)


def tokens(text: str) -> list[Token]:
    """Returns Markdown's tokens of a text."""
    return MarkdownIt('commonmark').enable('table').parse(text)


def _sections(path):
    """Returns the tokens of each section of a page; each but the first begins with a heading."""
    sections = [[]]
    for token in tokens(path.read_text(encoding='utf-8')):
        if token.type == 'heading_open':
            sections.append([])
        sections[-1].append(token)
    return [section for section in sections if section]


def _texts(path):
    """Returns the tokens of each cell of text, formulas as if they were code."""
    sources = [''.join(cell['source']) for cell in cells(path, 'markdown')]
    return [tokens(re.sub(r'(\$\$?)([^$]+)\1', r'`\2`', source)) for source in sources]
