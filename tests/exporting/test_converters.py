"""Converters are fetched once, whole or not at all, and hide nothing that is installed."""

import importlib.util
import pathlib
import re
import subprocess
import sys
import textwrap

import pytest

from flaxcls.commands import export as export_command
from flaxcls.errors import RunError, UserError
from flaxcls.exporting import converters

# Writes, where pip would install, a module for the first package and one that is there already.
STUB = """
    import pathlib, sys, time
    folder = pathlib.Path(sys.argv[sys.argv.index('--target') + 1])
    folder.mkdir()
    (folder / 'numpy.py').write_text('raise ImportError')
    time.sleep({seconds})
    (folder / 'stub_converter.py').write_text(f'ASKED = {{sys.argv[1:]!r}}')
"""
REQUIRE = """
    import sys
    from flaxcls.exporting import converters
    converters.CONVERTERS['stub_converter'] = ('stub-converter==1.2',)
    converters.find_installer = lambda module: [sys.executable, {stub!r}]
    converters.require_converter('stub_converter')
    import numpy, stub_converter
    numpy.zeros(1)
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Returns code -> None: what runs where pip would, for a converter named stub_converter."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(sys, 'path', [*sys.path])
    monkeypatch.setattr(
        converters, 'CONVERTERS', {'stub_converter': ('stub-converter==1.2', 'other==3.0')}
    )
    script = tmp_path / 'stub.py'
    monkeypatch.setattr(converters, 'find_installer', lambda module: [sys.executable, str(script)])
    yield lambda code: script.write_text(textwrap.dedent(code))
    sys.modules.pop('stub_converter', None)


def _kept():
    return sorted(path.name for path in converters.folder_of('stub_converter').parent.iterdir())


def test_a_converter_is_fetched_once_and_found_last(install, capsys):
    before = [*sys.path]
    install(STUB.format(seconds=0))
    converters.require_converter('stub_converter')
    assert capsys.readouterr().out == 'Fetching stub-converter 1.2, once ...\n'
    folder = converters.folder_of('stub_converter')
    assert sys.path == [*before, str(folder)]
    assert pathlib.Path(importlib.util.find_spec('numpy').origin).parent != folder
    import stub_converter

    assert stub_converter.ASKED[0] == '--target'
    assert stub_converter.ASKED[2:] == ['stub-converter==1.2', 'other==3.0']
    converters.require_converter('stub_converter')
    assert sys.path == [*before, str(folder)]
    sys.path[:] = before
    sys.modules.pop('stub_converter')
    install('raise SystemExit(1)')
    converters.require_converter('stub_converter')  # As another process does.
    assert capsys.readouterr().out == ''
    assert _kept() == [folder.name]


def test_another_version_or_python_has_a_folder_of_its_own(install, monkeypatch):
    first = converters.folder_of('stub_converter')
    versions = {'stub_converter': ('stub-converter==1.2', 'other==3.1')}
    monkeypatch.setattr(converters, 'CONVERTERS', versions)
    second = converters.folder_of('stub_converter')
    monkeypatch.setattr(sys.implementation, 'cache_tag', 'cpython-399')
    assert len({first, second, converters.folder_of('stub_converter')}) == 3


def test_an_installed_converter_is_taken_as_it_is(install, monkeypatch):
    install('raise SystemExit(1)')
    monkeypatch.setattr(converters, 'CONVERTERS', {'numpy': ('numpy==0.1',)})
    before = [*sys.path]
    converters.require_converter('numpy')
    assert sys.path == before


@pytest.mark.parametrize(
    ('code', 'reason'),
    [
        (
            'import sys; sys.exit("WARNING: a retry\\nERROR: No such distribution.\\n\\n")',
            'ERROR: No such distribution',
        ),
        ('import sys; sys.exit("no such option")', 'no such option'),
        ('raise SystemExit(3)', 'pip says nothing'),
    ],
    ids=['error', 'other', 'silent'],
)
def test_a_failing_pip_is_a_sentence_and_leaves_nothing(code, reason, install):
    install(code)
    with pytest.raises(RunError) as caught:
        converters.require_converter('stub_converter')
    assert str(caught.value) == (
        f'stub-converter 1.2 cannot be fetched ({reason}); run  pip install --no-deps '
        'stub-converter==1.2 other==3.0  yourself, or name a Python that has it with '
        '--export_python=PYTHON.'
    )
    assert _kept() == []


def test_a_cache_that_cannot_be_written_is_a_sentence(install, tmp_path):
    (tmp_path / 'cache').write_text('')
    with pytest.raises(RunError, match=r'cannot be fetched \(Not a directory: .*converters\)'):
        converters.require_converter('stub_converter')


def test_two_processes_at_once_leave_one_whole_folder(install, tmp_path):
    install(STUB.format(seconds=1))
    code = textwrap.dedent(REQUIRE.format(stub=str(tmp_path / 'stub.py')))
    pair = [
        subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in pair:
        assert process.communicate()[0] == 'Fetching stub-converter 1.2, once ...\n'
        assert process.returncode == 0
    (folder,) = converters.folder_of('stub_converter').parent.iterdir()
    assert (folder / 'stub_converter.py').is_file()


def test_pip_is_asked_for_wheels_alone_and_uv_where_there_is_none(monkeypatch):
    assert converters.find_installer('jax2onnx')[:3] == [sys.executable, '-m', 'pip']
    monkeypatch.setattr(converters.importlib.util, 'find_spec', lambda _: None)
    monkeypatch.setattr(converters.shutil, 'which', {'uv': '/bin/uv'}.get)
    command = converters.find_installer('jax2onnx')
    assert command[:3] == ['/bin/uv', 'pip', 'install']
    assert command[-2:] == ['--python', sys.executable]
    assert {'--no-deps', '--only-binary=:all:'} < set(command)
    monkeypatch.setattr(converters.shutil, 'which', {}.get)
    with pytest.raises(RunError, match='has no pip, and there is no uv'):
        converters.find_installer('jax2onnx')


@pytest.fixture
def flags():
    return ['--workdir=nowhere', '--format=onxx', '--out=out']


@pytest.mark.parametrize('kind', ['missing', 'folder', 'no program'])
def test_an_export_python_that_is_none_is_a_sentence(kind, flags, tmp_path):
    path = tmp_path / 'python'
    if kind == 'folder':
        path.mkdir()
    elif kind == 'no program':
        path.write_text('')
        path.chmod(0o755)
    with pytest.raises(UserError, match=f'--export_python={re.escape(str(path))} is no program; '):
        export_command.main([*flags, f'--export_python={path}'])


def test_an_export_python_without_flaxcls_is_a_sentence(flags, tmp_path):
    path = tmp_path / 'python'
    path.write_text('#!/bin/sh\necho "No module named flaxcls" >&2; exit 1\n')
    path.chmod(0o755)
    with pytest.raises(UserError, match=r'cannot import flaxcls \(No module named flaxcls\); '):
        export_command.main([*flags, f'--export_python={path}'])


def test_an_export_python_gets_the_other_arguments_and_its_exit_code_is_ours(flags, tmp_path):
    path = tmp_path / 'python'
    path.write_text('#!/bin/sh\n[ "$1" = -c ] || { echo "$@"; exit 7; }\n')
    path.chmod(0o755)
    command = [sys.executable, '-m', 'flaxcls', 'export', flags[0], '--export_python', str(path)]
    done = subprocess.run([*command, *flags[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == 7
    assert done.stdout == f'-m flaxcls export {" ".join(flags)}\n'
