"""The Chinese pages and notebooks say what their originals say.

What a translation cannot change is compared part by part (a section of a page, a cell of a
notebook): the kinds of its blocks, code, links, formulas and numbers. Where one of these tests
fails, the original has changed, and its translation must follow.
"""

import collections
import itertools
import json
import pathlib
import re
import shutil
import urllib.parse
from typing import NamedTuple

import pytest
from markdown_it.token import Token

from flaxcls.errors import RunError
from notebooks.update_translations import original_of, update
from tests.helpers.documents import (
    CHINESE_ONLY,
    ROOT,
    TRANSLATED_NOTEBOOKS,
    TRANSLATIONS,
    anchors,
)
from tests.helpers.texts import cells, inlines, prose, read_parts

PAGES = [ROOT / page for page in TRANSLATIONS]
NOTEBOOKS = [ROOT / notebook for notebook in TRANSLATED_NOTEBOOKS]
each_notebook = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.name)
each_translation = pytest.mark.parametrize(
    'path', [*PAGES, *NOTEBOOKS], ids=lambda path: str(path.relative_to(ROOT))
)


class Part(NamedTuple):
    """A section of a page, or a cell of a notebook, in both languages."""

    title: str  # In the original.
    original: list[Token]
    translation: list[Token]


def _title(tokens):
    """Returns the first heading, or else how the text begins."""
    texts = [token.content for token in tokens if token.type == 'inline']
    kinds = [token.type for token in tokens]
    if 'heading_open' in kinds:
        return tokens[kinds.index('heading_open') + 1].content
    return texts[0][:40] if texts else 'nothing'


def _parts(path):
    pairs = zip(read_parts(original_of(path)), read_parts(path), strict=False)
    return [Part(_title(english), english, chinese) for english, chinese in pairs]


PARTS = [
    pytest.param(path, part, id=f'{path.relative_to(ROOT)}-{part.title}')
    for path in (*PAGES, *NOTEBOOKS)
    for part in _parts(path)
]
each_part = pytest.mark.parametrize(('path', 'part'), PARTS)


def _pairs(path, part):
    """Returns the paragraphs, headings and cells of tables beside those that translate them."""
    original, translation = inlines(part.original), inlines(part.translation)
    assert len(translation) == len(original), _follow(path, part)
    return zip(original, translation, strict=True)


def _kinds(tokens):
    return [token.type + token.tag for token in tokens if token.nesting >= 0]


def _blocks_of_code(tokens):
    return [(token.info, token.content) for token in tokens if token.type == 'fence']


def _numbers(text):
    """Returns the numbers of a text; 120 万, ten thousands, is the 1.2 of 1.2 million."""
    text = re.sub(r'([\d.]+) 万', lambda match: f'{float(match[1]) / 100:g}', text)
    return re.findall(r'\d(?:[\d,.]*\d)?', text)


def _facts(inline, path):
    """Returns code, addresses and numbers, which a translation may say in another order."""
    found = _numbers(prose(inline))
    for child in inline.children:
        if child.type == 'code_inline':
            found.append(f'`{child.content}`')
        elif child.type in ('link_open', 'image'):
            address = child.attrs['href' if child.type == 'link_open' else 'src']
            if pathlib.PurePath(address).name not in {page.name for page in CHINESE_ONLY}:
                found.append(f']({_address_in_original(address, path)})')
    return sorted(found)


def _address_in_original(address, path):
    """Returns what the original links to: a translation links to translations where it can."""
    page, _, anchor = urllib.parse.unquote(address).partition('#')
    target = path.parent / page if page else path
    if anchor and target.name.endswith('.zh.md'):
        place = anchors(target).index(anchor)
        return f'{page.replace(".zh.", ".")}#{anchors(original_of(target))[place]}'
    return address.replace('.zh.', '.')


def _follow(path, part):
    name = original_of(path).name
    return f'"{part.title}" of {name} is not what {path.name} translates, which must follow'


@each_translation
def test_has_the_parts_of_its_original(path):
    original, translation = read_parts(original_of(path)), read_parts(path)
    assert sum(len(inlines(part)) for part in translation) > 5
    titles = [_title(tokens) for tokens in original]
    assert len(translation) == len(original), f'{path.name} has other parts than {titles}'


@each_part
def test_has_the_same_blocks_and_blocks_of_code(path, part):
    assert _kinds(part.translation) == _kinds(part.original), _follow(path, part)
    assert _blocks_of_code(part.translation) == _blocks_of_code(part.original), _follow(path, part)


@each_part
def test_has_the_same_code_links_and_numbers(path, part):
    for original, translation in _pairs(path, part):
        message = f'{_follow(path, part)}: {original.content}'
        assert _facts(translation, path) == _facts(original, original_of(path)), message


def _table_cells(tokens):
    return [
        inline.content
        for opening, inline in itertools.pairwise(tokens)
        if opening.type in ('th_open', 'td_open')
    ]


@pytest.mark.parametrize('path', PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_cells_of_tables_are_equal_where_the_originals_are(path):
    """So that a row that has moved in the original has moved in the translation."""
    tables = [
        [cell for part in read_parts(page) for cell in _table_cells(part)]
        for page in (original_of(path), path)
    ]
    pairs = set(zip(*tables, strict=True))
    for side in (0, 1):
        counts = collections.Counter(pair[side] for pair in pairs)
        assert set(counts.values()) <= {1}, sorted(p for p in pairs if counts[p[side]] > 1)


@each_translation
def test_original_and_translation_link_to_each_other(path):
    for here, there in ((path, original_of(path)), (original_of(path), path)):
        addresses = [
            child.attrs['href'].rpartition('/main/notebooks/')[2]
            for inline in inlines(read_parts(here)[0])[:2]
            for child in inline.children
            if child.type == 'link_open'
        ]
        assert there.name in addresses, f'the top of {here.name} has no link to {there.name}'


@each_notebook
def test_notebook_has_the_same_code_and_outputs(path):
    original = json.loads(original_of(path).read_text(encoding='utf-8'))
    translation = json.loads(path.read_text(encoding='utf-8'))
    message = 'python -m notebooks.update_translations takes over the code and what it puts out'
    assert [cell['id'] for cell in translation['cells']] == [c['id'] for c in original['cells']]
    assert cells(path, 'code') == cells(original_of(path), 'code'), message
    for key in ('metadata', 'nbformat', 'nbformat_minor'):
        assert translation[key] == original[key], message


@each_notebook
def test_update_takes_over_code_and_keeps_text(path, tmp_path):
    for notebook in (path, original_of(path)):
        shutil.copy(notebook, tmp_path)
    translation, original = tmp_path / path.name, tmp_path / original_of(path).name
    before = translation.read_bytes()
    update(translation)
    assert translation.read_bytes() == before
    content = json.loads(original.read_text(encoding='utf-8'))
    code = next(cell for cell in content['cells'] if cell['cell_type'] == 'code')
    code['source'], code['outputs'] = ['changed()'], []
    original.write_text(json.dumps(content), encoding='utf-8')
    update(translation)
    assert cells(translation, 'code') == cells(original, 'code')
    assert cells(translation, 'markdown') == cells(path, 'markdown')
    content['cells'].pop()
    original.write_text(json.dumps(content), encoding='utf-8')
    with pytest.raises(RunError, match=f'{len(content["cells"])} of {original.name}'):
        update(translation)


def test_every_chinese_page_is_a_translation_or_has_no_original():
    named = {*ROOT.glob('*.zh.*'), *(ROOT / 'docs').rglob('*.zh.*')}
    found = {path for path in named if path.suffix != '.png'}
    assert found == {*PAGES, *(ROOT / page for page in CHINESE_ONLY)}
    assert PAGES
    assert NOTEBOOKS
    for path in (*PAGES, *NOTEBOOKS):
        assert original_of(path).is_file()
        assert original_of(path) != path
    for page in CHINESE_ONLY:
        assert not original_of(ROOT / page).exists(), f'{page} has an original to be compared with'
