"""README.zh.md and the Chinese notebooks say what their originals say, and are in Chinese.

What a translation cannot change is compared part by part (a section of a page, a cell of a
notebook): the kinds of its blocks, code, links, formulas and numbers. Where one of these tests
fails, the original has changed, and its translation must follow.
"""

import json
import re
import shutil
from typing import NamedTuple

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from flaxcls.errors import RunError
from notebooks.update_translations import original_of, update
from tests.helpers.documents import ROOT, TRANSLATIONS

PAGES = [ROOT / page for page in TRANSLATIONS]
NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.zh.ipynb'))
each_notebook = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.name)
each_translation = pytest.mark.parametrize('path', [*PAGES, *NOTEBOOKS], ids=lambda path: path.name)

# Names that look like words, which stay.
_NAMES = {'flaxcls', 'torchvision', 'timm', 'architectures'}
_CHINESE = r'[\u4e00-\u9fff]'
_FULL_WIDTH = r'[\u3001\u3002\uff01\uff08\uff09\uff0c\uff1a\uff1b\uff1f]'
# What typesetting rules out -> what is expected.
_MISPRINTS = {
    rf'{_CHINESE}[A-Za-z0-9`]|[A-Za-z0-9%+`]{_CHINESE}': 'a space between Chinese and Latin',
    rf'{_CHINESE} ?[,;:!?()]|[,;:!?()] ?{_CHINESE}': 'full-width punctuation',
    rf'{_CHINESE} ?\.( |$)': 'a full-width stop',
    rf'{_FULL_WIDTH} | {_FULL_WIDTH}': 'no space beside full-width punctuation',
    rf'{_CHINESE} +{_CHINESE}': 'no space between Chinese characters',
    rf'["\']{_CHINESE}|{_CHINESE}["\']': 'Chinese quotation marks',
}


class Part(NamedTuple):
    """A section of a page, or a cell of a notebook, in both languages."""

    title: str  # In the original.
    original: list[Token]
    translation: list[Token]


def _tokens(text):
    return MarkdownIt('commonmark').enable('table').parse(text)


def _sections(path):
    """Returns the tokens of each section of a page; each but the first begins with a heading."""
    sections = [[]]
    for token in _tokens(path.read_text(encoding='utf-8')):
        if token.type == 'heading_open':
            sections.append([])
        sections[-1].append(token)
    return [section for section in sections if section]


def _cells(path, kind):
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return [cell for cell in cells if cell['cell_type'] == kind]


def _texts(path):
    """Returns the tokens of each cell of text, formulas as if they were code."""
    sources = [''.join(cell['source']) for cell in _cells(path, 'markdown')]
    return [_tokens(re.sub(r'(\$\$?)(.+?)\1', r'`\2`', source)) for source in sources]


def _title(tokens):
    """Returns the first heading, or else how the text begins."""
    texts = [token.content for token in tokens if token.type == 'inline']
    kinds = [token.type for token in tokens]
    if 'heading_open' in kinds:
        return tokens[kinds.index('heading_open') + 1].content
    return texts[0][:40] if texts else 'nothing'


def _parts(path):
    read = _texts if path.suffix == '.ipynb' else _sections
    pairs = zip(read(original_of(path)), read(path), strict=False)
    return [Part(_title(english), english, chinese) for english, chinese in pairs]


PARTS = [
    pytest.param(path, part, id=f'{path.name}-{part.title}')
    for path in (*PAGES, *NOTEBOOKS)
    for part in _parts(path)
]
each_part = pytest.mark.parametrize(('path', 'part'), PARTS)


def _prose(inline):
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


def _inlines(tokens):
    return [token for token in tokens if token.type == 'inline']


def _pairs(path, part):
    """Returns the paragraphs, headings and cells of tables beside those that translate them."""
    original, translation = _inlines(part.original), _inlines(part.translation)
    assert len(translation) == len(original), _follow(path, part)
    return zip(original, translation, strict=True)


def _kinds(tokens):
    return [token.type + token.tag for token in tokens if token.nesting >= 0]


def _blocks_of_code(tokens):
    return [(token.info, token.content) for token in tokens if token.type == 'fence']


def _facts(inline):
    """Returns code, addresses and numbers, which a translation may say in another order."""
    found = re.findall(r'\d(?:[\d,.]*\d)?', _prose(inline))
    for child in inline.children:
        if child.type == 'code_inline':
            found.append(f'`{child.content}`')
        elif child.type in ('link_open', 'image'):
            address = child.attrs['href' if child.type == 'link_open' else 'src']
            # A translation links to translations where there are any.
            found.append(f']({address.replace(".zh.", ".")})')
    return sorted(found)


def _follow(path, part):
    name = original_of(path).name
    return f'"{part.title}" of {name} is not what {path.name} translates, which must follow'


@each_translation
def test_has_the_parts_of_its_original(path):
    read = _texts if path.suffix == '.ipynb' else _sections
    original, translation = read(original_of(path)), read(path)
    assert len(translation) > 5
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
        assert _facts(translation) == _facts(original), message


def _english(prose):
    """Returns the words that are not names."""
    words = re.findall(r'(?<!\w)[A-Z]?[a-z]{3,}(?!\w)', prose)
    return [word for word in words if word not in _NAMES]


@each_part
def test_prose_is_in_chinese(path, part):
    for original, translation in _pairs(path, part):
        if _english(_prose(original)):
            assert re.search(_CHINESE, _prose(translation)), translation.content
        assert not re.search(r'[a-z]+(,? [a-z]+){3}', _prose(translation)), translation.content


@each_part
def test_is_set_as_chinese_is(path, part):
    for inline in _inlines(part.translation):
        prose = _prose(inline)
        # A browser shows the end of a line as a space, which Chinese has none of.
        assert '\n' not in prose.strip(), 'a paragraph is one line'
        for pattern, expected in _MISPRINTS.items():
            found = re.search(pattern, prose)
            assert not found, f'{expected}: {prose[max(0, found.start() - 10) : found.end() + 10]}'
        assert '**' not in prose, f'emphasis that is not closed: {prose}'


@pytest.mark.parametrize(
    'misprint',
    [
        *('用JAX写', '共 20个', '用 `x`做', '图片, 标签', '图片 (标签)', '图片.', '图 片', '"图"'),
        *('图片\uff0c 标签', '图片 \uff0c标签'),
    ],
)
def test_misprints_are_found(misprint):
    (inline,) = _inlines(_tokens(misprint))
    assert any(re.search(pattern, _prose(inline)) for pattern in _MISPRINTS)


@each_translation
def test_original_and_translation_link_to_each_other(path):
    for here, there in ((path, original_of(path)), (original_of(path), path)):
        read = _texts if path.suffix == '.ipynb' else _sections
        addresses = [
            child.attrs['href'].rpartition('/main/notebooks/')[2]
            for inline in _inlines(read(here)[0])
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
    assert _cells(path, 'code') == _cells(original_of(path), 'code'), message
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
    assert _cells(translation, 'code') == _cells(original, 'code')
    assert _cells(translation, 'markdown') == _cells(path, 'markdown')
    content['cells'].pop()
    original.write_text(json.dumps(content), encoding='utf-8')
    with pytest.raises(RunError, match=f'{len(content["cells"])} of {original.name}'):
        update(translation)


def test_every_translation_is_compared():
    found = {path for path in ROOT.glob('*.zh.*')} | set((ROOT / 'docs').rglob('*.zh.*'))
    assert found == set(PAGES)
    assert NOTEBOOKS
    for path in (*PAGES, *NOTEBOOKS):
        assert original_of(path).is_file()
        assert original_of(path) != path
