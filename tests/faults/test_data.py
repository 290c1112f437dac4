"""Data that changes between two commands is seen, and no training image comes into validation."""

import argparse
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from flaxcls.commands.flags import add_workdir
from flaxcls.config.config_dict import to_json
from flaxcls.config.files import load_config
from flaxcls.config.workdir import CLASSES_FILE, CONFIG_FILE, DATA_FILE, METRICS_FILE
from flaxcls.data.crops import EvalCrop, TrainCrop
from flaxcls.data.datasets import ArraySplit
from flaxcls.data.hold_out import is_held_out
from flaxcls.data.pipeline import make_eval_batches, make_train_batches
from flaxcls.errors import UserError
from flaxcls.training.data_record import (
    ACCEPT,
    make_record,
    merge_records,
    read_record,
    write_record,
)
from flaxcls.training.dataset import read_dataset
from tests.helpers.faults import draws

CLASSES, OF_EACH = ('ant', 'bee', 'cat'), 20


def _write_image(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path):
    for label, name in enumerate(CLASSES):
        for number in range(OF_EACH):
            _write_image(tmp_path / f'photos/{name}/{number}.png', (label, number))
    return tmp_path / 'photos'


def _open(source, workdir=None, **options):
    config = load_config(None, {'data.source': source, 'data.image_size': 8, **options})
    return config, read_dataset(config, for_training=True, workdir=workdir)


def _begin_run(source, workdir):
    """Leaves what a run leaves of its data as it starts, and returns the data set."""
    config, dataset = _open(source, **{'model.num_classes': len(CLASSES)})
    workdir.mkdir()
    (workdir / CLASSES_FILE).write_text(json.dumps(dataset.class_names))
    (workdir / CONFIG_FILE).write_text(to_json(config))
    write_record(make_record(dataset, source), workdir)
    return dataset


@pytest.fixture
def run(photos, tmp_path):
    _begin_run(f'folder:{photos}', tmp_path / 'run')
    return tmp_path / 'run'


@pytest.fixture(params=['folder', 'manifest'])
def source(request, photos):
    if request.param == 'folder':
        return f'folder:{photos}'
    rows = [f'{path.relative_to(photos)},{path.parent.name}' for path in photos.glob('*/*.png')]
    (photos / 'list.csv').write_text('\n'.join(['path,label', *rows]))
    return f'manifest:{photos}/list.csv'


# Hold-out --------------------------------------------------------------------------------------


def test_a_file_that_comes_or_goes_moves_no_other(photos):
    _, before = _open(f'folder:{photos}')
    for name in ('ant/1.png', 'bee/3.png', 'bee/4.png'):
        (photos / name).unlink()
    _write_image(photos / 'cat/new.png', 99)
    _, after = _open(f'folder:{photos}')
    for mine, other in (('train', 'val'), ('val', 'train')):
        stayed = set(getattr(before, mine).relative_names())
        assert not stayed & set(getattr(after, other).relative_names())


@pytest.mark.parametrize('fraction', [0.1, 0.5])
def test_shares_are_about_the_fraction_and_another_seed_is_another_draw(fraction):
    names = [f'{label}/{number}.png' for label in range(10) for number in range(1000)]
    drawn = [[is_held_out(name, fraction, seed) for name in names] for seed in (0, 1)]
    for held_out in drawn:
        assert abs(np.mean(held_out) - fraction) < 5 * np.sqrt(fraction / len(names))
    both = np.logical_and(*drawn).mean()
    assert abs(both - fraction**2) < 0.02


def test_the_share_and_empty_classes_are_told_and_a_class_without_training_refused(photos):
    _, dataset = _open(f'folder:{photos}')
    count = len(dataset.val)
    assert any(f'{count} held out for validation by their names ({count / 60:.1%}' in note
               for note in dataset.notes)  # fmt: skip
    held_out = next(f'dog/{n}.png' for n in range(99) if is_held_out(f'dog/{n}.png', 0.2, 0))
    _write_image(photos / held_out, 1)
    with pytest.raises(UserError, match=r"class 'dog' has 1 image\(s\), all of them held out"):
        _open(f'folder:{photos}')
    (photos / held_out).unlink()
    trained = next(f'dog/{n}.png' for n in range(99) if not is_held_out(f'dog/{n}.png', 0.2, 0))
    _write_image(photos / trained, 1)
    _, dataset = _open(f'folder:{photos}')
    assert '1 classes have no validation image: dog.' in dataset.notes


def test_digits_keep_their_split():
    _, dataset = _open('digits')
    assert (len(dataset.train), len(dataset.val)) == (1438, 359)


# What a run began with -------------------------------------------------------------------------


def test_the_same_data_is_taken_wherever_it_lies(source, photos, tmp_path):
    run = tmp_path / 'run'
    before = _begin_run(source, run)
    moved = photos.rename(tmp_path / 'elsewhere')
    _, after = _open(source.replace(str(photos), str(moved)), run)
    assert after.train.relative_names() == before.train.relative_names()
    assert read_record(run).train == after.train.listing()


def test_a_relative_path_is_that_of_the_directory_in_which_the_run_began(
    photos, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    _begin_run('folder:photos', tmp_path / 'run')
    other = tmp_path / 'other'
    for name in CLASSES:
        for number in range(OF_EACH):
            _write_image(other / f'photos/{name}/{number}.png', (5, number))
    monkeypatch.chdir(other)
    _, dataset = _open('folder:photos', tmp_path / 'run')
    assert all(path.startswith(str(photos)) for path in dataset.val.paths)


def _remove(path, photos, rng):
    path.unlink()


def _add(path, photos, rng):
    _write_image(path.with_name(f'more{rng.integers(1000)}.png'), (7, int(rng.integers(1000))))


def _paint_over(path, photos, rng):
    _write_image(path, (8, int(rng.integers(1000))))


def _rename(path, photos, rng):
    path.rename(path.with_name(f'renamed{rng.integers(1000)}.png'))


def _move_to_another_class(path, photos, rng):
    others = [name for name in CLASSES if name != path.parent.name]
    path.rename(photos / others[rng.integers(len(others))] / f'moved{rng.integers(1000)}.png')


def _copy(path, photos, rng):
    shutil.copy(path, path.with_name(f'copy{rng.integers(1000)}.png'))


CHANGES = [_remove, _add, _paint_over, _rename, _move_to_another_class, _copy]


@pytest.mark.parametrize('change', CHANGES, ids=lambda change: change.__name__)
def test_every_change_is_refused_with_a_name(change, run, photos):
    change(photos / 'bee/7.png', photos, np.random.default_rng(0))
    with pytest.raises(
        UserError, match=r'is not what the run in .* began with: 1 .*bee/'
    ) as caught:
        _open(f'folder:{photos}', run)
    assert '--accept_data_changes' in str(caught.value)
    assert '\n' not in str(caught.value)


def test_of_changes_drawn_at_random_none_leaks(seed, photos, run, tmp_path, monkeypatch):
    """What was trained on stays out of validation by name and by content, change after change."""
    rng = np.random.default_rng(seed)
    for _ in range(draws(6)):
        record = read_record(run)
        contents = set(record.train.digests)
        for _ in range(rng.integers(1, 9)):
            files = sorted(photos.rglob('*.png'))
            CHANGES[rng.integers(len(CHANGES))](files[rng.integers(len(files))], photos, rng)
        monkeypatch.delenv(ACCEPT, raising=False)
        with pytest.raises(UserError, match='is not what the run'):
            _open(f'folder:{photos}', run)
        monkeypatch.setenv(ACCEPT, '1')
        config, dataset = _open(f'folder:{photos}', run)
        listing = dataset.val.listing()
        assert not set(listing.names) & set(record.train.names), f'seed {seed}'
        assert not set(listing.digests) & contents, f'seed {seed}'
        # The run goes on: all that it has ever trained on is kept.
        now = merge_records(record, make_record(dataset, config.data.source))
        assert set(record.train.names) | set(now.train.names) == set(now.train.names)
        write_record(now, run)


@pytest.mark.parametrize('delimiter', [',', ';', '\t'])
def test_the_columns_of_a_table_may_be_quoted(delimiter, photos):
    rows = [['path', 'label'], *([str(f), f.parent.name] for f in sorted(photos.glob('*/*.png')))]
    lines = [delimiter.join(f'"{cell}"' for cell in row) for row in rows]
    (photos / 'list.csv').write_text('\n'.join(lines))
    _, dataset = _open(f'manifest:{photos}/list.csv')
    assert dataset.class_names == CLASSES
    assert len(dataset.train) + len(dataset.val) == len(rows) - 1


def test_a_table_that_gives_a_file_another_class_is_refused(photos, tmp_path):
    path = photos / 'list.csv'
    rows = [f'{file.relative_to(photos)},{file.parent.name}' for file in photos.glob('*/*.png')]
    path.write_text('\n'.join(['path,label', *rows]))
    _begin_run(f'manifest:{path}', tmp_path / 'run')
    path.write_text(path.read_text().replace('ant/3.png,ant', 'ant/3.png,bee'))
    with pytest.raises(UserError, match=r'1 (training|validation) images is of another class'):
        _open(f'manifest:{path}', tmp_path / 'run')


def test_trained_on_images_stay_out_though_they_were_written_anew(photos, run, monkeypatch):
    """As another file of the same picture, and drawn for validation by another seed."""
    for path in photos.rglob('*.png'):
        Image.open(path).save(path, compress_level=1, pnginfo=None, bits=8)
        path.write_bytes(path.read_bytes() + b'more')
    monkeypatch.setenv(ACCEPT, '1')
    _, dataset = _open(f'folder:{photos}', run, seed=1)
    record = read_record(run)
    assert len(dataset.val) and not set(dataset.val.relative_names()) & set(record.train.names)


def test_unreadable_files_that_were_left_out_are_no_change(photos, tmp_path):
    """Neither where training images are read again, nor where an evaluation leaves them unread."""
    for name in CLASSES:
        for number in range(4):
            (photos / f'{name}/{number}.png').write_bytes(b'no image')
    options = {'data.on_error': 'skip', 'model.num_classes': len(CLASSES)}
    config, dataset = _open(f'folder:{photos}', **options)
    run = tmp_path / 'run'
    run.mkdir()
    (run / CONFIG_FILE).write_text(to_json(config))
    (run / CLASSES_FILE).write_text(json.dumps(dataset.class_names))
    write_record(make_record(dataset, config.data.source), run)
    for for_training in (True, False):
        again = read_dataset(config, for_training=for_training, workdir=run)
        assert again.val.relative_names() == dataset.val.relative_names()


def test_the_flag_accepts_for_this_process_and_those_it_starts(monkeypatch):
    monkeypatch.setenv(ACCEPT, '0')
    parser = argparse.ArgumentParser()
    add_workdir(parser)
    parser.parse_args(['--workdir=run'])
    assert os.environ[ACCEPT] == '0'
    parser.parse_args(['--workdir=run', '--accept_data_changes'])
    assert os.environ[ACCEPT] == '1'


def test_other_data_that_is_named_is_taken(run, photos, tmp_path):
    _write_image(tmp_path / 'others/train/ant/1.png', 1)
    for name in CLASSES:
        _write_image(tmp_path / f'others/train/{name}/1.png', 1)
        _write_image(tmp_path / f'others/val/{name}/2.png', 2)
    _, dataset = _open(f'folder:{tmp_path}/others', run)
    assert len(dataset.val) == 3


@pytest.mark.parametrize('option', ['seed', 'data.val_fraction'])
def test_another_draw_is_no_other_data(option, run, photos):
    value = {'seed': 1, 'data.val_fraction': 0.4}[option]
    with pytest.raises(UserError, match='that it has trained on are in validation'):
        _open(f'folder:{photos}', run, **{option: value})


def test_a_run_that_kept_no_record_of_its_hold_out_is_refused(run, photos):
    (run / DATA_FILE).unlink()
    _open(f'folder:{photos}', run)  # Imported weights have not been trained on any.
    (run / METRICS_FILE).write_text('')
    with pytest.raises(UserError, match='held out other images for validation'):
        _open(f'folder:{photos}', run)


@pytest.mark.parametrize('content', [b'', b'no gzip', None])
def test_a_damaged_record_is_a_sentence(content, run, photos):
    path = run / DATA_FILE
    path.write_bytes(path.read_bytes()[:50] if content is None else content)
    with pytest.raises(UserError, match='cannot be told which images the run was trained on'):
        _open(f'folder:{photos}', run)


# Labels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('label', [-1, 3])
@pytest.mark.parametrize('is_random', [False, True])
def test_labels_of_no_class_are_refused_by_the_example(label, is_random):
    labels = np.array([0, 1, 2, label], np.int32)
    split = ArraySplit(np.zeros((4, 8, 8, 3), np.uint8), labels)
    crop = TrainCrop(8, 'random_resized') if is_random else EvalCrop(8)
    options = {'batch_size': 4, 'num_classes': 3}
    with pytest.raises(UserError, match=f'example 3 has the label {label}, and there are 3'):
        if is_random:
            next(make_train_batches(split, crop, num_epochs=1, seed=0, **options)(0))
        else:
            next(make_eval_batches(split, crop, **options)())
