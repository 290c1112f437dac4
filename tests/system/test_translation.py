"""Catalogues have every text of the pages and no other, and a language is chosen as one expects."""

import ast
import pathlib
import pickle
import re

import pytest
from jinja2.ext import extract_from_ast

from flaxcls.system import translation
from flaxcls.system.html import create_environment
from flaxcls.system.translation import (
    ENGLISH,
    Message,
    choose_language,
    list_languages,
    load_catalogue,
    load_translation,
)
from tests.helpers.chinese import CHINESE, english_words, has_english_sentence, misprints

ROOT = pathlib.Path('flaxcls')
EXPORTED = ROOT / 'exporting' / 'page'
# The templates of each kind of page. The sweeps' page is in English alone.
TEMPLATES = {
    'report': [ROOT / 'reporting' / 'templates' / name for name in ('base.html', 'report.html')],
    'server': [ROOT / 'serving' / 'templates' / 'serve.html'],
    'web': [EXPORTED / 'index.html'],
}
LANGUAGES = list_languages()[1:]
each_page = pytest.mark.parametrize('page', TEMPLATES)
each_language = pytest.mark.parametrize('language', LANGUAGES)


def _texts_of_template(path):
    environment = create_environment(path.parent)
    tree = environment.parse(path.read_text(encoding='utf-8'))
    for _, _, text in extract_from_ast(tree, ('_',)):
        yield text if isinstance(text, str) else text[0]


def _texts_of_module(path):
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            continue
        if node.func.id in ('translate', 'Message') and isinstance(node.args[0], ast.Constant):
            yield node.args[0].value


def _texts_of_script(path):
    return re.findall(r"\btranslate\(\s*'((?:[^'\\]|\\.)*)'", path.read_text(encoding='utf-8'))


def _texts(page):
    """Returns what a kind of page may say; what modules say is the report's, or of an export."""
    found = {text for path in TEMPLATES[page] for text in _texts_of_template(path)}
    for path in ROOT.rglob('*.py'):
        shown_in = 'web' if 'exporting' in path.parts else 'report'
        if shown_in == page:
            found |= set(_texts_of_module(path))
    if page == 'web':
        found |= {text for path in EXPORTED.glob('*.js') for text in _texts_of_script(path)}
    return found


def _pairs(language):
    return [pair for texts in load_catalogue(language).values() for pair in texts.items()]


def test_there_is_a_language_besides_english():
    assert 'zh' in LANGUAGES and list_languages()[0] == 'en'


@each_language
def test_a_catalogue_has_a_table_for_each_kind_of_page(language):
    assert set(load_catalogue(language)) == set(TEMPLATES)


@each_page
@each_language
def test_a_catalogue_has_every_text_and_none_that_is_never_shown(language, page):
    texts, translated = _texts(page), load_catalogue(language)[page]
    assert len(texts) > 10
    assert not texts - set(translated), 'to be translated'
    assert not set(translated) - texts, 'is shown nowhere'


@each_language
def test_placeholders_and_markup_are_kept(language):
    for english, translated in _pairs(language):
        for pattern in (r'\{[^}]*\}', r'<[^>]*>', r'&\w+;', r'\d+'):
            kept = sorted(re.findall(pattern, translated))
            assert kept == sorted(re.findall(pattern, english)), english


@each_language
def test_values_are_put_into_every_text(language):
    for page, texts in load_catalogue(language).items():
        translate = load_translation(language, page)
        for english in texts:
            values = {name: f'<{name}>' for name in re.findall(r'\{(\w+)', english)}
            shown = translate(english, **values)
            assert all(value in shown for value in values.values())
            assert '{' not in shown


def _prose(text):
    """Returns a text as it is read, with numbers for what is put into it."""
    without_tags = re.sub(r'<code>.*?</code>|\{[^}]*\}', '0', text)
    return re.sub(r'<[^>]*>', '', without_tags).replace('&nbsp;', '\N{NO-BREAK SPACE}')


def test_chinese_is_chinese_and_set_as_such():
    for english, chinese in _pairs('zh'):
        prose = _prose(chinese)
        if english_words(_prose(english)):
            assert re.search(CHINESE, prose), english
        assert not has_english_sentence(prose)
        assert not misprints(prose)
        is_sentence = english.endswith('.') and not english.endswith('...')
        assert is_sentence == chinese.endswith('\N{IDEOGRAPHIC FULL STOP}'), english


@pytest.mark.parametrize(
    ('wanted', 'chosen'),
    [
        ([], 'en'),
        (['zh'], 'zh'),
        (['ZH-hans-CN'], 'zh'),
        (['zh-TW', 'en'], 'zh'),
        (['en-GB', 'zh'], 'en'),
        (['tlh', 'zh', 'en'], 'zh'),
        (['zhx', 'x-zh', '*', '', '-'], 'en'),
    ],
)
def test_a_reader_gets_the_first_language_that_there_is(wanted, chosen):
    assert choose_language(wanted) == chosen


def test_a_file_is_a_language(tmp_path, monkeypatch):
    text = "[server]\n'image' = 'imagem'\n[web]\n[report]\n"
    (tmp_path / 'pt-BR.toml').write_text(text, encoding='utf-8')
    monkeypatch.setattr(translation, 'FOLDER', tmp_path)
    list_languages.cache_clear()
    try:
        assert list_languages() == ('en', 'pt-BR')
        assert choose_language(['pt-br', 'en']) == 'pt-BR'
        assert load_translation('pt-BR', 'server')('image') == 'imagem'
    finally:
        list_languages.cache_clear()


def test_a_message_is_its_english_sentence_and_can_be_translated():
    inner = Message('{n} of them', n=3)
    outer = Message('there are {some}; {name!r}', some=inner, name='{x}')
    assert outer == "there are 3 of them; '{x}'"
    texts = {'{n} of them': '<{n}>', 'there are {some}; {name!r}': '{name!r}: {some}'}
    other = translation.Translation('other', texts)
    assert other(outer) == "'{x}': <3>"
    assert other(pickle.loads(pickle.dumps(outer))) == "'{x}': <3>"
    assert ENGLISH(outer) == outer
    assert other('{no value}') == Message('{no value}') == '{no value}'
    assert other.knows(outer) and not other.knows('there are 3 of them')


def test_what_is_put_into_a_template_is_escaped_and_its_texts_are_not(tmp_path):
    (tmp_path / 'page.html').write_text("{{ _('<b>{name}</b>', name='<i>') }}")
    texts = {'<b>{name}</b>': '<u>{name}</u>'}
    for translate, tag in ((ENGLISH, 'b'), (translation.Translation('other', texts), 'u')):
        page = create_environment(tmp_path, translate).get_template('page.html').render()
        assert page == f'<{tag}>&lt;i&gt;</{tag}>'
