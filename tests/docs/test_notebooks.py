"""The notebooks: executed by nbmake in their smallest setting, and what is committed of them."""

import itertools
import json
import pathlib
import re
import shutil
import socket
import subprocess
import sys

import pytest

from flaxcls.exporting.formats import FORMATS
from tests.helpers.converters import need_converter
from tests.helpers.environment import with_devices

ADDRESS = 'https://github.com/flaxcls/flaxcls'
COLAB = ADDRESS.replace('github.com', 'colab.research.google.com/github') + '/blob/main/notebooks/'
MOST_BYTES = 800_000
NOTEBOOKS = sorted(pathlib.Path('notebooks').glob('*.ipynb'))
# A translation has the code and the outputs of its original, which test_translations.py compares.
ORIGINALS = [path for path in NOTEBOOKS if not path.name.endswith('.zh.ipynb')]
EXPORTS = {'sorting_garments': 'onnx-int8'}  # What is fetched to execute a notebook.
each_notebook = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)


def _cells(path, kind):
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return [cell for cell in cells if cell['cell_type'] == kind]


def _outputs(path):
    return [output for cell in _cells(path, 'code') for output in cell['outputs']]


def _text(outputs):
    """Returns all that a person would read in outputs."""
    parts = [output.get('text') or output.get('data', {}).get('text/plain') for output in outputs]
    return '\n'.join(''.join(part) for part in parts if part)


def _execute(notebook, scratch):
    """Executes a notebook in place as `make notebooks` does, in its smallest setting."""
    environment = with_devices(1) | {
        'FLAXCLS_TINY': '1',
        'PYTHONPATH': str(pathlib.Path.cwd()),
        # A kernel of the same name in the user's home could be another Python's.
        'JUPYTER_PREFER_ENV_PATH': '1',
        'JUPYTER_RUNTIME_DIR': str(scratch / 'runtime'),
        'IPYTHONDIR': str(scratch / 'ipython'),
        'MPLCONFIGDIR': str(scratch / 'matplotlib'),
        'TMPDIR': str(scratch / 'temporary'),
    }
    (scratch / 'temporary').mkdir(parents=True)
    command = [sys.executable, '-m', 'pytest', '-p', 'no:cacheprovider', '--nbmake', '--overwrite']
    return subprocess.run(
        [*command, '--nbmake-timeout=300', notebook.name],
        cwd=notebook.parent,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize('path', ORIGINALS, ids=lambda path: path.stem)
def test_notebook_runs_anywhere_quietly_and_leaves_nothing(path, tmp_path):
    if path.stem in EXPORTS:
        need_converter(FORMATS[EXPORTS[path.stem]].converter)
    notebook = tmp_path / 'elsewhere' / path.name
    notebook.parent.mkdir()
    shutil.copy(path, notebook)
    result = _execute(notebook, tmp_path)
    assert result.returncode == 0, result.stdout
    assert list(notebook.parent.iterdir()) == [notebook]
    left = [path.name for path in (tmp_path / 'temporary').iterdir()]
    assert left in ([], ['.ses'])  # What onnxruntime numbers its sessions by.
    _require_quiet(notebook)


def test_failing_cell_fails_and_the_kernel_is_this_python(tmp_path):
    source = 'import sys\nprint(sys.prefix)\nassert False'
    cell = {'cell_type': 'code', 'source': source, 'outputs': [], 'metadata': {}, 'id': 'a'}
    kernel = {'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}
    content = {'nbformat': 4, 'nbformat_minor': 5, 'metadata': {'kernelspec': kernel}}
    notebook = tmp_path / 'elsewhere' / 'fails.ipynb'
    notebook.parent.mkdir()
    notebook.write_text(json.dumps(content | {'cells': [cell | {'execution_count': None}]}))
    result = _execute(notebook, tmp_path)
    assert result.returncode == 1, result.stdout
    assert sys.prefix in _text(_outputs(notebook)).splitlines()


def _require_quiet(path):
    """Asserts that outputs have no error, no warning, and nothing of the machine."""
    outputs = _outputs(path)
    assert not [output for output in outputs if output['output_type'] == 'error']
    assert not [output for output in outputs if output.get('name') == 'stderr']
    assert not re.findall(r'(?<![\w.:])/[A-Za-z][\w.-]+', _text(outputs))
    assert 'Warning' not in _text(outputs)


@each_notebook
def test_committed_outputs_are_there_small_and_quiet(path):
    assert path.stat().st_size < MOST_BYTES
    assert any('image/png' in output.get('data', {}) for output in _outputs(path))
    assert socket.gethostname() not in _text(_outputs(path))
    _require_quiet(path)


@each_notebook
def test_committed_outputs_are_those_of_one_run_from_top_to_bottom(path):
    metadata = json.loads(path.read_text(encoding='utf-8'))['metadata']
    assert metadata['kernelspec']['name'] == 'python3'
    counts = [cell['execution_count'] for cell in _cells(path, 'code')]
    assert counts == list(range(1, len(counts) + 1))


@each_notebook
def test_badge_opens_the_notebook_and_its_first_cell_installs(path):
    heading, *_ = _cells(path, 'markdown')
    assert f']({COLAB}{path.name})' in ''.join(heading['source'])
    first, *others = (''.join(cell['source']) for cell in _cells(path, 'code'))
    assert f"REPOSITORY = '{ADDRESS}'" in first
    for extra in ('[tpu]', '[cuda]'):
        assert extra in first
    assert not [source for source in others if ADDRESS in source or 'pip install' in source]


def test_the_first_cells_are_the_same_in_all():
    firsts = [''.join(_cells(path, 'code')[0]['source']) for path in NOTEBOOKS]
    assert len(firsts) >= 3
    assert all(one == other for one, other in itertools.pairwise(firsts))


@each_notebook
def test_links_between_notebooks_lead_somewhere(path):
    text = '\n'.join(''.join(cell['source']) for cell in _cells(path, 'markdown'))
    linked = set(re.findall(re.escape(COLAB) + r'([\w.]+)', text))
    assert linked <= {other.name for other in NOTEBOOKS}
    for name in re.findall(r'experiments/[\w/]+\.py', text):
        assert pathlib.Path(name).is_file(), name
