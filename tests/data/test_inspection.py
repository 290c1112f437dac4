"""`flaxcls data check` finds what was planted, and nothing else."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from flaxcls.config.files import load_config
from flaxcls.data import inspection
from flaxcls.data.inspection import inspect_dataset
from flaxcls.data.near_duplicates import groups_of_equals, linked, near_pairs, thumbnail
from tests.helpers.unpack import open_dataset

FINDINGS = (
    'unreadable', 'across_splits', 'conflicts', 'within_splits', 'near_duplicates', 'odd_sizes',
    'few_examples', 'not_in_validation',
)  # fmt: skip


def _photograph(seed, height=60, width=80):
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)).resize(
                (width, height), Image.Resampling.BICUBIC
            ),
            np.float32,
        )
        for n in (2, 4, 8, 16)
    ]
    return np.mean(layers, 0).astype(np.uint8)


def _save(image, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)


@pytest.fixture
def clean(tmp_path):
    """A folder of two classes without a fault."""
    root = tmp_path / 'photos'
    for index in range(24):
        part = 'train' if index < 20 else 'val'
        _save(_photograph(index), root / part / 'ab'[index % 2] / f'{index}.png')
    return root


def _inspect(root, **overrides):
    config = load_config(None, {'data.source': f'folder:{root}'} | overrides)
    return inspect_dataset(open_dataset(config), num_threads=2)


def _found(report):
    return {name: getattr(report, name) for name in FINDINGS if getattr(report, name)}


def test_clean_folder_has_no_finding(clean):
    report = _inspect(clean)
    assert _found(report) == {}
    assert not report.is_wrong
    assert report.classes == [{'name': 'a', 'train': 10, 'val': 2},
                              {'name': 'b', 'train': 10, 'val': 2}]  # fmt: skip
    assert report.formats == {'PNG': 24}
    assert report.sizes == {'smallest': [60, 80], 'median': [60, 80], 'largest': [60, 80]}


def _copy(root, old, new, change=lambda image: image, **options):
    _save(change(np.asarray(Image.open(root / old))), root / new, **options)


def _brighter(image):
    return np.asarray(ImageEnhance.Brightness(Image.fromarray(image)).enhance(1.1))


# What is planted -> (how, the finding that it is, the files in it).
FAULTS = {
    'text': (lambda r: (r / 'train/a/x.jpg').write_text('no image'), 'unreadable', ['x.jpg']),
    'truncated': (
        lambda r: (r / 'val/b/x.png').write_bytes((r / 'val/b/21.png').read_bytes()[:900]),
        'unreadable',
        ['x.png'],
    ),
    'dangling link': (lambda r: (r / 'train/a/x.png').symlink_to('no'), 'unreadable', ['x.png']),
    'in both splits': (
        lambda r: _copy(r, 'train/a/0.png', 'val/a/x.png'), 'across_splits', ['0.png', 'x.png'],
    ),
    'in both splits, as BMP': (
        lambda r: _copy(r, 'train/a/0.png', 'val/a/x.bmp'), 'across_splits', ['0.png', 'x.bmp'],
    ),
    'two labels': (
        lambda r: _copy(r, 'train/a/0.png', 'train/b/x.png'), 'conflicts', ['0.png', 'x.png'],
    ),
    'twice': (
        lambda r: _copy(r, 'train/a/0.png', 'train/a/x.png'), 'within_splits', ['0.png', 'x.png'],
    ),
    'JPEG of it': (
        lambda r: _copy(r, 'train/a/0.png', 'val/a/x.jpg', quality=60),
        'near_duplicates',
        ['0.png', 'x.jpg'],
    ),
    'smaller': (
        lambda r: _copy(r, 'train/a/0.png', 'train/a/x.png', lambda i: np.asarray(
            Image.fromarray(i).resize((70, 52)))),
        'near_duplicates',
        ['0.png', 'x.png'],
    ),
    'brighter': (
        lambda r: _copy(r, 'train/a/0.png', 'train/a/x.png', _brighter),
        'near_duplicates',
        ['0.png', 'x.png'],
    ),
    'tiny': (
        lambda r: _save(_photograph(99, 5, 30), r / 'train/a/x.png'), 'odd_sizes', ['x.png'],
    ),
    'long': (
        lambda r: _save(_photograph(99, 20, 300), r / 'train/a/x.png'), 'odd_sizes', ['x.png'],
    ),
}  # fmt: skip


@pytest.mark.parametrize('fault', FAULTS)
def test_planted_fault_is_found_and_nothing_else(clean, fault):
    plant, finding, files = FAULTS[fault]
    plant(clean)
    report = _inspect(clean)
    assert list(_found(report)) == [finding]
    (found,) = getattr(report, finding)
    names = [found] if isinstance(found, str) else found
    names = [found.name] if finding == 'unreadable' else names
    assert [os.path.basename(name) for name in names] == files
    assert report.is_wrong == (finding in ('unreadable', 'across_splits', 'conflicts'))


def test_classes_that_are_small_or_not_in_validation_are_remarked(clean):
    _save(_photograph(50), clean / 'train/c/50.png')
    assert _found(_inspect(clean)) == {'few_examples': ['c'], 'not_in_validation': ['c']}


def test_different_pictures_are_not_taken_for_the_same():
    """Digits, of which many are alike to the eye, and pictures of one style."""
    from sklearn.datasets import load_digits

    digits = np.repeat((load_digits().images * 15.9).astype(np.uint8)[..., None], 3, -1)
    large = [np.asarray(Image.fromarray(digit).resize((64, 64), 3)) for digit in digits]
    assert len(list(near_pairs(np.stack([thumbnail(image) for image in large])))) <= 2
    photographs = [_photograph(seed) for seed in range(300)]
    assert list(near_pairs(np.stack([thumbnail(image) for image in photographs]))) == []


def test_near_pairs_are_those_of_comparing_each_to_each():
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (40, 16, 17))
    noisy = np.concatenate([base, base + rng.integers(-6, 7, base.shape)]).clip(0, 255)
    thumbnails = noisy.astype(np.uint8)
    found = set(near_pairs(thumbnails))
    bits = (np.diff(noisy, axis=-1) > 0).reshape(80, -1)
    flat = thumbnails.reshape(80, -1).astype(float)
    expected = {
        (i, j)
        for i in range(80)
        for j in range(i + 1, 80)
        if (bits[i] != bits[j]).sum() <= 15 and np.corrcoef(flat[i], flat[j])[0, 1] >= 0.995
    }
    assert found == expected
    assert len(found) > 10


def test_groups_and_links():
    keys = np.array([[1, 1], [2, 2], [1, 1], [3, 3], [2, 2], [1, 1]])
    assert sorted(map(list, groups_of_equals(keys))) == [[0, 2, 5], [1, 4]]
    assert linked([(5, 7), (1, 2), (2, 5), (8, 9)]) == [[1, 2, 5, 7], [8, 9]]
    assert linked([]) == []


def test_sets_in_memory_are_inspected_too():
    report = inspect_dataset(open_dataset(load_config(None, {})), num_threads=2)
    assert sum(entry['train'] for entry in report.classes) == 1438
    assert report.formats == {'array': 1797}
    assert not report.is_wrong


def _run(*arguments):
    command = [sys.executable, '-m', 'flaxcls', 'data', 'check', *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_command_reports_writes_and_exits_by_what_it_found(clean, tmp_path):
    (clean / 'train/weird name! é').mkdir()
    for index in range(10):
        _save(_photograph(70 + index), clean / 'train/weird name! é' / f'{index}.png')
    arguments = [f'--source=folder:{clean}', f'--json={tmp_path / "r.json"}']
    result = _run(*arguments, f'--sheets={tmp_path / "sheets"}')
    assert (result.returncode, result.stderr) == (0, '')
    assert 'remark: 1 classes are not in validation' in result.stdout
    assert result.stdout.count('\n') < 20
    assert set(json.loads((tmp_path / 'r.json').read_text())) > {*FINDINGS, 'classes', 'is_wrong'}
    sheets = sorted((tmp_path / 'sheets').iterdir())
    assert len(sheets) == 3
    with Image.open(sheets[0]) as sheet:
        pixels = np.asarray(sheet.convert('RGB'))
    # Ten pictures below the title, in the order of their names.
    first = np.asarray(Image.open(clean / 'train/a/0.png').resize((92, 92), 2))
    cell = pixels[34:126, 2:94].astype(int)
    assert np.abs(cell.mean((0, 1)) - first.mean((0, 1))).max() < 8
    assert (pixels[34:126, 902:954] != 255).any()

    _copy(clean, 'train/a/0.png', 'val/a/x.png')
    result = _run(*arguments)
    assert result.returncode == 1
    assert 'WRONG: 1 pictures are in training and in validation' in result.stdout
    assert result.stderr.count('\n') == 1
    assert json.loads((tmp_path / 'r.json').read_text())['is_wrong'] is True


def test_long_lists_are_cut_for_the_terminal(clean):
    for index in range(30):
        (clean / 'train/a' / f'bad{index}.jpg').write_bytes(io.BytesIO().getvalue())
    lines = list(inspection.describe_report(_inspect(clean), classes_shown=1))
    assert '... and 1 more classes; --json has all.' in lines
    assert 'WRONG: 30 files cannot be read' in lines
    assert '  ... and 20 more; --json has all.' in lines
