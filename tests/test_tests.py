"""The tests themselves: each asserts something, and stands on its own."""

import ast
import pathlib

import pytest

from tests.helpers.costs import COMPILING, SLOW

FOLDER = pathlib.Path(__file__).parent
TREES = {path: ast.parse(path.read_text(encoding='utf-8')) for path in FOLDER.rglob('*.py')}
TESTS = sorted(path for path in TREES if path.name.startswith('test_'))
# Calls that fail a test, by the end of their dotted names.
ASSERTING = {'pytest.raises', 'pytest.warns', 'pytest.fail'}

each_file = pytest.mark.parametrize('path', TESTS, ids=lambda path: str(path.relative_to(FOLDER)))


def _functions(path):
    """Returns {name: function} of those at the top of a file, and of those it has from helpers."""
    found = {}
    for node in TREES[path].body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.ImportFrom) and (node.module or '').startswith('tests.'):
            source = FOLDER.parent / (node.module.replace('.', '/') + '.py')
            theirs = _functions(source)
            found |= {a.asname or a.name: theirs[a.name] for a in node.names if a.name in theirs}
    return found


def _asserts(function, functions, seen=frozenset()):
    """Returns whether a function asserts something, or one that it names does."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if name in ASSERTING or name.startswith('np.testing.assert_'):
                return True
        if isinstance(node, ast.Name) and node.id in functions and node.id not in seen:
            called = functions[node.id]
            if called is not function and _asserts(called, functions, seen | {node.id}):
                return True
    return False


@each_file
def test_every_test_asserts_something(path):
    functions = _functions(path)
    silent = [
        name
        for name, function in functions.items()
        if name.startswith('test_') and not _asserts(function, functions)
    ]
    assert silent == []


@each_file
def test_no_test_imports_another_or_what_is_private(path):
    for node in ast.walk(TREES[path]):
        names = [alias.name for alias in getattr(node, 'names', []) if hasattr(alias, 'name')]
        if isinstance(node, ast.ImportFrom):
            names += node.module.split('.')
        elif isinstance(node, ast.Import):
            names = [part for name in names for part in name.split('.')]
        else:
            continue
        for name in names:
            assert not name.startswith(('test_', 'conftest')), name
            assert not name.startswith('_') or name.startswith('__'), name


def test_what_takes_long_is_there():
    for place in COMPILING + SLOW:
        path, _, name = place.partition('::')
        assert (FOLDER / path).exists()
        if name:
            names = _functions(FOLDER / path)
            assert any(known.startswith(name.partition('[')[0]) for known in names)


def test_a_test_that_asserts_nothing_is_found():
    text = 'def test_a(): _b()\ndef _b(): c()\n'
    for body, expected in (('pass', False), ('assert d', True), ('_b()', False)):
        tree = ast.parse(f'{text}def c(): {body}\n')
        functions = {node.name: node for node in tree.body}
        assert _asserts(functions['test_a'], functions) == expected
