"""What README.md and docs/ name exists: files, places, options, flags, tests."""

import contextlib
import io
import re

import pytest

import flaxcls.main
from flaxcls.__main__ import COMMANDS, main
from flaxcls.config.config_dict import default_config, flatten, set_option
from flaxcls.config.files import list_experiments, load_config
from flaxcls.errors import UserError
from flaxcls.models.registry import MODELS
from tests.helpers.documents import (
    CHINESE_ONLY,
    DOCUMENTS,
    ROOT,
    TRANSLATIONS,
    Code,
    anchors,
    code,
    commands,
    parse,
    prose_code,
)

_CHINESE = [*TRANSLATIONS, *CHINESE_ONLY]
_TEXTS = {
    document: (ROOT / document).read_text(encoding='utf-8') for document in (*DOCUMENTS, *_CHINESE)
}
_KEYS = [key for key, _ in flatten(default_config())]
_GROUPS = {key.partition('.')[0] for key in _KEYS if '.' in key}
# Named as mistakes.
_WRONG = {'--config.bach_size=8'}
# Flags of other programs, and of what stands for an option.
_FOREIGN = {'--config.KEY=VALUE', '--help'}


@pytest.mark.parametrize('document', [*DOCUMENTS, *_CHINESE], ids=str)
def test_links_lead_somewhere(document):
    links = re.findall(r'\]\(([^)\s]+)\)', _TEXTS[document])
    for link in links:
        if re.match(r'[a-z]+:', link):
            continue
        path, _, anchor = link.partition('#')
        target = (ROOT / document).parent / path if path else ROOT / document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize(
    ('name', 'pages'),
    [('README.md', [*DOCUMENTS, *CHINESE_ONLY]), ('README.zh.md', _CHINESE)],
)
def test_every_page_is_in_the_index(name, pages):
    index = next(document for document in pages if document.as_posix() == f'docs/{name}')
    for document in pages:
        if document.parts[0] == 'docs' and document != index:
            assert f']({document.relative_to("docs").as_posix()})' in _TEXTS[index], document


@pytest.mark.parametrize('document', DOCUMENTS, ids=str)
def test_files_exist(document):
    folders = ('', 'experiments', 'flaxcls', document.parent)
    for text in prose_code(document):
        name = text.partition(':')[0]
        in_tree = re.match(r'(flaxcls|tests|docs|experiments|benchmarks|results)/', name)
        if not re.fullmatch(r'[\w./]+', name) or not (in_tree or name.endswith('.py')):
            continue
        assert any((ROOT / folder / name).exists() for folder in folders), text
        if ':' in text and name.endswith('.py'):
            load_config(f'{ROOT / "experiments" / name}:{text.partition(":")[2]}')


@pytest.mark.parametrize('document', DOCUMENTS, ids=str)
def test_tests_exist(document):
    sources = [path.read_text(encoding='utf-8') for path in (ROOT / 'tests').rglob('test_*.py')]
    for text in prose_code(document):
        if re.fullmatch(r'test_\w+', text):
            assert any(f'def {text}(' in source for source in sources), text


def _named_options(text):
    """Yields (key, value or '') of each option that a piece of code names, in any of its forms."""
    for word in parse(text)[0].arguments if '--config.' in text else [text]:
        match = re.fullmatch(r'(--config\.|config\.|)([a-z]\w*(?:\.[a-z]\w*)*)(?:=(.*))?', word)
        if match and word not in _WRONG | {'config.json', 'config.py'}:
            prefix, key, value = match.groups()
            if prefix or ('.' in key and key.partition('.')[0] in _GROUPS):
                yield key, value or ''


@pytest.mark.parametrize('document', DOCUMENTS, ids=str)
def test_options_exist_and_take_what_is_said(document):
    for text in prose_code(document):
        for key, value in _named_options(text):
            assert key in _KEYS, text
            if value:
                set_option(default_config(), key, value)


def test_options_are_found_in_all_their_forms():
    found = [
        *_named_options('x --config.data.mean=1,2,3 --config.seed=1'),
        *_named_options('ema.decay'),
    ]
    found += [
        *_named_options('config.freeze'),
        *_named_options('numpy.array'),
        *_named_options('seed'),
    ]
    assert found == [('data.mean', '1,2,3'), ('seed', '1'), ('ema.decay', ''), ('freeze', '')]


def test_what_is_named_as_a_mistake_is_one():
    for text in _WRONG:
        key, _, value = text.removeprefix('--config.').partition('=')
        with pytest.raises(UserError, match='did you mean'):
            set_option(default_config(), key, value)


@pytest.fixture(scope='module')
def flags():
    """All flags of all commands, from what --help prints."""
    found = set()
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        for name in COMMANDS:
            with pytest.raises(SystemExit):
                main([*name.split(), '--help'])
        with pytest.raises(SystemExit):
            flaxcls.main.main(['--help'])
    found |= set(re.findall(r'(?<!\S)--\w+', text.getvalue()))
    return found


@pytest.mark.parametrize('document', DOCUMENTS, ids=str)
def test_flags_exist(document, flags):
    assert '--workdir' in flags
    for text in prose_code(document):
        if text.startswith('--') and not text.startswith('--config.') and text not in _FOREIGN:
            for word in text.split():
                assert word.partition('=')[0] in flags, text


def test_the_page_of_models_has_what_the_registry_has():
    named = set()
    for line in (ROOT / 'docs/models.md').read_text(encoding='utf-8').splitlines():
        if line.startswith('| `'):
            first, parameters, gmacs = (cell.strip() for cell in line.split('|')[1:4])
            names = re.findall(r'`(\w+)`', first)
            named |= set(names)
            rows = [MODELS[name] for name in names]
            assert parameters.split(' / ') == [f'{row.parameters:,}' for row in rows]
            # VGG's are equal with and without BatchNorm, and written once.
            written = dict.fromkeys(f'{row.gmacs:.4f}' for row in rows)
            assert gmacs.split(' / ') == list(written)
    assert {re.sub(r'^resnet\d+_(v1|v2|d)$', r'resnet50_\1', name) for name in MODELS} == named


def test_the_page_of_recipes_names_every_experiment():
    text = (ROOT / 'docs/recipes.md').read_text(encoding='utf-8')
    for entry in list_experiments():
        assert re.search(rf'`{entry.name}(:\w+)?`', text), entry.name


def test_prose_is_searched_and_blocks_are_for_the_shell_or_python():
    for document in DOCUMENTS:
        languages = {piece.language for piece in code(document)}
        assert languages <= {'prose', '', 'python'}, document
    lines = ['a b  # c', 'X=1 python -m d && make e', '# no command', "python 'f g' \\", '  h']
    found = [parse(line) for line in commands(Code('', '', '\n'.join(lines)))]
    assert [[str(c) for c in line] for line in found] == [
        ['a b'], ['python -m d', 'make e'], ["python 'f g' h"]
    ]  # fmt: skip
    assert found[1][0].environment == {'X': '1'}
    spans = [
        'python -m x y',
        'x y',
        'flaxcls train --config=...',
        'flaxcls train',
        '!pip install z',
    ]
    found = [list(commands(Code('', 'prose', span))) for span in spans]
    assert found == [[spans[0]], [], [], [], ['pip install z']]
