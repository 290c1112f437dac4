"""What a run has written down and what is cached: damaged, it is mended or told."""

import json
import os
import pathlib

import numpy as np
import pytest

from flaxcls.config.workdir import METRICS_FILE, RECORD_FILE
from flaxcls.data.cache import cached
from flaxcls.data.datasets import FileSplit
from flaxcls.errors import RunError
from flaxcls.system import files
from flaxcls.training.logging import MetricsWriter, find_trackers, read_metrics
from flaxcls.training.run_record import read_record
from tests.helpers.faults import draws

RECORDS = [{'step': step, 'epoch': step / 2, 'train/loss': 1 / step} for step in range(1, 9)]
RECORD = {
    'seed': 0, 'options': {'seed': 0}, 'total_steps': 4, 'step': 4, 'val': None,
    'parts': [{'from_step': 0, 'to_step': 4, 'seconds': 1.5, 'device': 'cpu'}],
}  # fmt: skip


def _damage(data, rng):
    at = int(rng.integers(len(data)))
    kind = rng.integers(4)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes(min(20, len(data) - at)) + data[at + 20 :]
    if kind == 2:
        return data[:at] + bytes([data[at] ^ 0x80]) + data[at + 1 :]
    return data[:at] + bytes([rng.integers(256)]) + data[at:]


def test_damaged_metrics_leave_the_other_lines(seed, tmp_path, capsys):
    rng = np.random.default_rng(seed)
    whole = ''.join(json.dumps(record) + '\n' for record in RECORDS).encode()
    for _ in range(draws(50)):
        (tmp_path / METRICS_FILE).write_bytes(_damage(whole, rng))
        records = read_metrics(tmp_path)
        assert len(records) >= len(RECORDS) - 2 or len((tmp_path / METRICS_FILE).read_bytes()) < 400
        assert all(isinstance(record['step'], int) for record in records)
    capsys.readouterr()
    (tmp_path / METRICS_FILE).write_bytes(whole.replace(b'"step": 3', b'"step": \x83'))
    assert [record['step'] for record in read_metrics(tmp_path)] == [1, 2, 4, 5, 6, 7, 8]
    assert 'line 3 of' in capsys.readouterr().out


def test_a_damaged_record_is_none(seed, tmp_path):
    rng, whole = np.random.default_rng(seed), json.dumps(RECORD).encode()
    for _ in range(draws(50)):
        (tmp_path / RECORD_FILE).write_bytes(_damage(whole, rng))
        record = read_record(tmp_path)
        assert not record or {part['to_step'] for part in record['parts']}
    for field in ('from_step', 'to_step', 'seconds'):
        part = {key: value for key, value in RECORD['parts'][0].items() if key != field}
        (tmp_path / RECORD_FILE).write_text(json.dumps(RECORD | {'parts': [part]}))
        assert read_record(tmp_path) == {}


def test_events_are_on_disk_before_a_save(tmp_path):
    """So a run that is killed thereafter resumes without a gap."""
    pytest.importorskip('tensorboardX')
    writer = MetricsWriter(tmp_path, 0, find_trackers('tensorboard', {}))
    before = sum(path.stat().st_size for path in tmp_path.rglob('*tfevents*'))
    writer.write(RECORDS[0])
    writer.flush()
    assert sum(path.stat().st_size for path in tmp_path.rglob('*tfevents*')) > before
    writer.close()


@pytest.fixture
def split(write_images):
    root = write_images({f'{number}.png': (20, 30) for number in range(40)})
    return FileSplit(sorted(map(str, root.glob('*.png'))), np.zeros(40, np.int32), str(root))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(files, 'user_cache_folder', lambda: tmp_path / 'cache')
    return lambda: next(path for path in (tmp_path / 'cache').rglob('*') if path.is_file())


@pytest.mark.parametrize('share', [0, 0.5])
def test_a_damaged_cache_of_images_is_made_anew(share, split, cache, capsys):
    before = [cached(split, 'disk', 16)[index][0] for index in (0, 39)]
    path = cache()
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    capsys.readouterr()
    again = cached(split, 'disk', 16)
    assert f'{path} in the cache is damaged, and made anew' in capsys.readouterr().out
    for index, image in zip((0, 39), before, strict=True):
        np.testing.assert_array_equal(again[index][0], image)


def test_a_damaged_image_in_the_cache_is_named_with_its_file(split, cache):
    cached(split, 'disk', 16)
    path = cache()
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0x55
    path.write_bytes(data)
    again = cached(split, 'disk', 16)
    with pytest.raises(RunError, match=r'in the cache is damaged .* delete it'):
        for index in range(len(again)):
            again[index]


def test_what_cannot_be_kept_is_told(tmp_path, capsys, monkeypatch):
    def refuse(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(np, 'save', refuse)
    files.save_atomically(tmp_path / 'kept', np.zeros(3))
    said = capsys.readouterr().out
    assert 'cannot be kept for the next start (No space left on device)' in said
    assert not list(pathlib.Path(tmp_path).iterdir())
