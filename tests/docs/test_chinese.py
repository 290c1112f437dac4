"""The Chinese pages and notebooks are good Chinese: typesetting, links, one word for one thing."""

import re
from typing import NamedTuple

import pytest

from notebooks.update_translations import original_of
from tests.helpers.chinese import CHINESE, english_words, has_english_sentence, misprints
from tests.helpers.documents import CHINESE_ONLY, ROOT, TRANSLATED_NOTEBOOKS, TRANSLATIONS
from tests.helpers.texts import inlines, prose, read_parts, tokens

each_page = pytest.mark.parametrize(
    'page', [*TRANSLATIONS, *TRANSLATED_NOTEBOOKS, *CHINESE_ONLY], ids=str
)
each_translation = pytest.mark.parametrize('page', [*TRANSLATIONS, *TRANSLATED_NOTEBOOKS], ids=str)

GLOSSARY = ROOT / 'docs/glossary.zh.md'
# Where a notebook opens in Colab.
_COLAB = 'https://colab.research.google.com/github/flaxcls/flaxcls/blob/main/'
# What follows a link to a page that has no translation, or ends its text.
_IN_ENGLISH = '\uff08英文\uff09'

# Names that look like words, which stay.
_NAMES = {'flaxcls', 'torchvision', 'timm', 'architectures', 'alexnet'}
_NAMES |= {'cutout', 'mixup', 'cutmix', 'randaugment'}


def _inlines(page):
    """Returns the paragraphs, headings and cells of tables of a page or notebook."""
    return [inline for part in read_parts(page) for inline in inlines(part)]


def _reads(page):
    return '\n'.join(map(prose, _inlines(page)))


@each_page
def test_is_set_as_chinese_is(page):
    for inline in _inlines(ROOT / page):
        text = prose(inline)
        # A browser shows the end of a line as a space, which Chinese has none of.
        assert '\n' not in text.strip(), f'a paragraph is one line: {text}'
        assert not misprints(text)
        assert '**' not in text, f'emphasis that is not closed: {text}'
        assert '您' not in text, f'the reader is addressed as 你: {text}'


@pytest.mark.parametrize(
    'misprint',
    [
        *('用JAX写', '共 20个', '用 `x`做', '图片, 标签', '图片 (标签)', '图片.', '图 片', '"图"'),
        *('图片\uff0c 标签', '图片 \uff0c标签'),
    ],
)
def test_misprints_are_found(misprint):
    (inline,) = inlines(tokens(misprint))
    assert misprints(prose(inline))


def _words(text):
    """Returns the English words that are not names."""
    return [word for word in english_words(text) if word not in _NAMES]


@each_translation
def test_prose_is_in_chinese(page):
    for original, translation in zip(
        _inlines(original_of(ROOT / page)), _inlines(ROOT / page), strict=True
    ):
        if _words(prose(original)):
            assert re.search(CHINESE, prose(translation)), translation.content
        assert not has_english_sentence(prose(translation)), translation.content


def _links(inline):
    """Yields the address of each link, its text, and the text behind it."""
    children = inline.children
    for place, child in enumerate(children):
        if child.type == 'link_open':
            end = next(k for k in range(place, len(children)) if children[k].type == 'link_close')
            text = ''.join(inside.content for inside in children[place + 1 : end])
            yield child.attrs['href'], text, ''.join(after.content for after in children[end + 1 :])


def _fault_of_link(page, address, text, behind):
    """Returns what is wrong with a link of a Chinese page, or None.

    What has a translation is linked to in Chinese, but for a page's own original; what has none is
    said to be in English. Only pages and notebooks of the project count.
    """
    path = address.partition('#')[0]
    if path.startswith(_COLAB):
        target = ROOT / path.removeprefix(_COLAB)
    elif not path or re.match(r'[a-z]+:', path):
        return None
    else:
        target = (page.parent / path).resolve()
    if target.suffix not in ('.md', '.ipynb') or '.zh.' in target.name:
        return None
    if target == original_of(page) and text == 'English':
        return None
    translation = target.with_suffix(f'.zh{target.suffix}')
    if translation.exists():
        return f'{address} has a translation, {translation.name}'
    if not text.endswith(_IN_ENGLISH) and not behind.startswith(_IN_ENGLISH):
        return f'{address} is in English, which {_IN_ENGLISH} says behind it'
    return None


@each_page
def test_links_are_to_chinese_or_say_that_they_are_not(page):
    for inline in _inlines(ROOT / page):
        for link in _links(inline):
            fault = _fault_of_link(ROOT / page, *link)
            assert not fault, f'{fault}: {inline.content[:80]}'


@pytest.mark.parametrize(
    ('text', 'says'),
    [
        ('[甲](one.md)', 'has a translation'),
        (f'[快速上手]({_COLAB}notebooks/quickstart.ipynb)', 'has a translation'),
        ('[乙](two.md)列出全部选项', 'is in English'),
        (f'[乙](two.md#part)、[丙](../RESULTS.md){_IN_ENGLISH}', 'is in English'),
        (f'[乙](two.md){_IN_ENGLISH}列出全部选项', None),
        (f'[乙{_IN_ENGLISH}](two.md#part)', None),
        ('[甲](one.zh.md)、[English](page.md)', None),
        ('[论文](https://arxiv.org/abs/1512.03385)、[许可证](LICENSE)', None),
    ],
)
def test_links_in_english_are_found(text, says, tmp_path):
    (tmp_path / 'one.zh.md').touch()
    (inline,) = inlines(tokens(text))
    faults = [_fault_of_link(tmp_path / 'page.zh.md', *link) for link in _links(inline)]
    assert faults
    if says:
        assert says in faults[0]
    else:
        assert faults == [None] * len(faults)


class Term(NamedTuple):
    """A row of the glossary."""

    english: list[str]
    chinese: list[str]
    avoided: list[str]  # Other Chinese names.
    meaning: str


def _split(names):
    return [name for name in re.split(r'、|, ', names) if name]


def _read_glossary():
    """Returns the rows of the tables, whose columns are the English names, Chinese, meaning."""
    found = []
    for part in read_parts(GLOSSARY):
        _, *columns = map(prose, inlines(part))
        if columns[:3] == ['英文', '中文', '说明']:
            for place in range(3, len(columns), 3):
                english, chinese, meaning = columns[place : place + 3]
                name, others = re.fullmatch('(.+?)(?:\uff08又称(.+)\uff09)?', chinese).groups()
                found.append(Term(_split(english), _split(name), _split(others or ''), meaning))
    return found


TERMS = _read_glossary()


def test_the_glossary_has_a_name_and_a_sentence_for_each_term():
    assert len(TERMS) >= 70
    for names in ('english', 'chinese'):
        listed = [name for term in TERMS for name in getattr(term, names)]
        assert len(listed) == len(set(listed)), f'{names} names are there twice'
    for term in TERMS:
        assert re.fullmatch(r'[^。]+。', term.meaning), f'one sentence: {term.meaning}'


def test_the_glossary_lists_as_other_names_what_it_does_not_use():
    used = {name for term in TERMS for name in term.chinese}
    for term in TERMS:
        assert not used & set(term.avoided), term


@each_translation
def test_one_thing_has_one_name(page):
    text = _reads(ROOT / page)
    for term in TERMS:
        for name in term.avoided:
            assert name not in text, f'the glossary says {term.chinese}, not {name}'


def _names_any(text, names):
    """Returns whether an English text has one of the names, or its plural."""
    patterns = (re.escape(name).replace(r'\ ', r'\s+') for name in names)
    return re.search(rf'(?<![\w-])({"|".join(patterns)})(s|es)?(?![\w-])', text, re.IGNORECASE)


@each_translation
def test_terms_are_translated_as_the_glossary_says(page):
    original, translation = _reads(original_of(ROOT / page)), _reads(ROOT / page)
    used = [term for term in TERMS if _names_any(original, term.english)]
    assert used
    for term in used:
        assert any(name in translation for name in term.chinese), f'{term.english}: {term.chinese}'


def test_the_project_uses_the_terms_of_the_glossary():
    text = '\n'.join(_reads(original_of(ROOT / page)) for page in TRANSLATIONS)
    used = [term for term in TERMS if _names_any(text, term.english)]
    assert len(used) > len(TERMS) / 2
