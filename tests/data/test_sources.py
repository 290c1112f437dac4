"""Sources, image files and batches."""

import gzip
import os
import pathlib
import struct

import numpy as np
import pytest

from flaxcls.config.files import load_config
from flaxcls.data import crops
from flaxcls.data import images as images_lib
from flaxcls.data.datasets import ArraySplit, Subset
from flaxcls.data.fashion_mnist import DEBIAN_FASHION_MNIST, prepare_fashion_mnist, read_idx
from flaxcls.data.tfds import find_prepared
from flaxcls.errors import RunError, UserError
from tests.helpers.unpack import make_eval_batches, make_train_batches, open_dataset


def _config(**overrides):
    overrides = {'batch_size': 8, 'num_epochs': 3, 'data.image_size': 8} | overrides
    config = load_config(None, overrides)
    return config


def _numbered(count, size=8):
    """Images whose every pixel is their label."""
    labels = np.arange(count, dtype=np.int32)
    pixels = np.broadcast_to(labels[:, None, None, None], (count, size, size, 1))
    return ArraySplit(pixels.astype(np.uint8), labels)


def test_digits_are_split_once_and_for_all():
    for seed in (0, 7):
        source = open_dataset(_config(seed=seed))
        assert (len(source.train), len(source.val)) == (1438, 359)
        assert source.class_names == tuple('0123456789')
        counts = np.bincount(source.val.labels)
        assert counts.min() >= 35
        assert counts.max() <= 37
        image, label = source.val[5]
        assert (image.dtype, image.shape) == (np.uint8, (8, 8, 1))
        assert label == source.val.labels[5]
    every = np.concatenate([source.train.images, source.val.images])
    assert every.max() == 255
    # Together they are scikit-learn's own, every image as often as there.
    from sklearn.datasets import load_digits

    digits = load_digits()
    expected = np.round(digits.images * 255 / 16).astype(np.uint8)
    labels = np.concatenate([source.train.labels, source.val.labels])
    pairs = [
        sorted((int(label), image.tobytes()) for image, label in zip(images, labels, strict=True))
        for images, labels in ((every, labels), (expected, digits.target))
    ]
    assert pairs[0] == pairs[1]


@pytest.mark.parametrize(
    ('names', 'order'),
    [
        (['b', 'a', 'C'], ['C', 'a', 'b']),
        (['10', '9', '1'], ['1', '9', '10']),
        (['10', '9', 'x'], ['10', '9', 'x']),
        (['ä', 'z'], ['z', 'ä']),
        (['b', b'\xff'.decode(errors='surrogateescape')], ['b', '\udcff']),
    ],
)
def test_folder_classes_have_one_order(write_images, names, order):
    files = {f'{part}/{name}/{part}.png': (8, 9) for name in names for part in ('train', 'val')}
    source = open_dataset(_config(**{'data.source': f'folder:{write_images(files)}'}))
    assert list(source.class_names) == order
    for split in (source.train, source.val):
        for index, path in enumerate(split.paths):
            assert pathlib.Path(path).parent.name == order[split[index][1]]


def test_folder_leaves_out_with_a_note_and_misses_nothing(write_images):
    folder = write_images(
        {
            'train/a/1.png': (8, 8),
            'train/a/deeper/2.JPG': (8, 8),
            'train/b/3.webp': (8, 8),
            'train/.hidden/4.png': (8, 8),
            'train/c/.5.png': (8, 8),
            'val/b/6.bmp': (8, 8),
        }
    )
    (folder / 'train/a/notes.txt').write_text('')
    (folder / 'train/empty').mkdir()
    (folder / 'train/README').write_text('')
    source = open_dataset(_config(**{'data.source': f'folder:{folder}'}))
    assert source.class_names == ('a', 'b')
    assert [os.path.basename(path) for path in source.train.paths] == ['1.png', '2.JPG', '3.webp']
    assert source.val.labels.tolist() == [1]  # A class missing in val shifts no label.
    assert source.notes == (
        '4 files that are not images of a class were left out: 2 .png, 1 README, 1 .txt.',
        '2 folders have no image: c, empty.',
        '1 classes have no validation image: a.',
    )


def test_folders_without_images_have_no_say_in_the_order(write_images):
    folder = write_images({f'{name}/{i}.png': (8, 8) for name in ('10', '9') for i in range(5)})
    (folder / 'notes').mkdir()
    assert open_dataset(_config(**{'data.source': f'folder:{folder}'})).class_names == ('9', '10')


def test_files_are_looked_into_where_their_names_do_not_say(write_images):
    folder = write_images({f'{name}/{i}.png': (8, 8) for name in 'ab' for i in range(5)})
    (folder / 'a/0.png').rename(folder / 'a/0')
    (folder / 'a/1.png').rename(folder / 'a/1.photo')
    (folder / 'b/list.csv').write_text('path,label')
    source = open_dataset(_config(**{'data.source': f'folder:{folder}'}))
    assert len(source.train) + len(source.val) == 10
    assert '1 files that are not images of a class were left out: 1 .csv.' in source.notes


def test_folder_that_contains_itself_is_one_sentence(write_images):
    folder = write_images({f'{name}/{i}.png': (8, 8) for name in 'ab' for i in range(5)})
    (folder / 'a/again').symlink_to(folder / 'a')
    with pytest.raises(UserError, match='is a link to a folder that it lies in'):
        open_dataset(_config(**{'data.source': f'folder:{folder}'}))


def test_link_to_a_class_folder_is_followed_and_a_dangling_one_is_named(write_images):
    folder = write_images({f'{name}/{i}.png': (8, 8) for name in 'ab' for i in range(5)})
    (folder / 'c').symlink_to(folder / 'a')
    assert open_dataset(_config(**{'data.source': f'folder:{folder}'})).class_names == tuple('abc')
    (folder / 'a/0.png').unlink()
    (folder / 'a/0.png').symlink_to('nowhere.png')
    source = open_dataset(_config(**{'data.source': f'folder:{folder}'}))
    batches = make_eval_batches(_config(), Subset(source.train, range(len(source.train))))
    with pytest.raises(RunError, match=r'a/0.png'):
        list(batches()), list(make_eval_batches(_config(), source.val)())


def test_folder_without_splits_holds_out_a_share_of_every_class(write_images):
    folder = write_images({f'{name}/{i}.png': (8, 8) for name in 'ab' for i in range(10)})
    overrides = {'data.source': f'folder:{folder}', 'data.val_fraction': 0.3}
    first, again = (open_dataset(_config(**overrides)) for _ in range(2))
    other = open_dataset(_config(**overrides, seed=1))
    assert np.bincount(first.val.labels).tolist() == [2, 1]  # By their names.
    assert first.val.paths == again.val.paths != other.val.paths
    assert not set(first.train.paths) & set(first.val.paths)
    assert len(set(first.train.paths) | set(first.val.paths)) == 20


@pytest.mark.parametrize(
    ('files', 'says'),
    [
        (['train/a/1.png'], 'no folder validation or val or test'),
        (['train/a/1.png', 'val/b/1.png'], 'is a class that'),
        (['1.png'], 'has no images in folders'),
        (['train/1.png', 'val/a/1.png'], 'has no images in folders'),
        (['a/1.png'], 'leaves one side without any'),
        (['val/a/1.png', 'val/b/1.png'], 'there is no folder .*train'),
        (['training/a/1.png', 'val/a/1.png'], 'config.data.train_split'),
        (['Train/a/1.png', 'Val/a/1.png'], 'looks like a part of the data'),
    ],
)
def test_folder_that_is_not_one_is_one_sentence(write_images, files, says):
    folder = write_images(dict.fromkeys(files, (8, 8)))
    with pytest.raises(UserError, match=says):
        open_dataset(_config(**{'data.source': f'folder:{folder}'}))


@pytest.mark.parametrize(
    ('source', 'option', 'value'),
    [
        ('digits', 'train_split', 'train'),
        ('digits', 'val_split', 'test'),
        ('digits', 'val_fraction', 0.3),
        ('tfds:cifar10', 'val_fraction', 0.3),
        ('synthetic:100', 'val_split', 'val'),
        ('folder:', 'val_fraction', 0.3),
        ('folder:', 'val_split', 'test'),
        ('folder:', 'train_split', 'training'),
    ],
)
def test_option_that_a_source_cannot_heed_is_refused(write_images, source, option, value):
    folder = write_images({f'{part}/a/1.png': (8, 8) for part in ('train', 'val')})
    source = f'{source}{folder}' if source == 'folder:' else source
    with pytest.raises(UserError, match=f'config.data.{option}|there is no folder|no folder test'):
        open_dataset(_config(**{'data.source': source, f'data.{option}': value}))


def _write_manifest(folder, text, name='labels.csv'):
    (folder / name).write_text(text, encoding='utf-8-sig')
    return _config(**{'data.source': f'manifest:{folder / name}'})


@pytest.mark.parametrize('delimiter', [',', ';', '\t'])
def test_manifest_names_images_labels_and_splits(write_images, delimiter):
    folder = write_images({f'images/{i}.png': (8, 8) for i in range(6)})
    lines = ['Path,Label,Split', 'images/0.png,10,train', '"images/1.png",9,train', '']
    lines += [f'{folder}/images/2.png,10,val', 'images/3.png,9,holdout', 'images/4.png,9,train']
    text = '\n'.join(lines).replace(',', delimiter)
    source = open_dataset(_write_manifest(folder, text))
    assert source.class_names == ('9', '10')
    assert [os.path.basename(path) for path in source.train.paths] == ['0.png', '1.png', '4.png']
    assert source.train.labels.tolist() == [1, 0, 0]
    assert source.val.labels.tolist() == [1]
    assert source.notes == ("1 rows of the split 'holdout' were left out.",)
    for split in (source.train, source.val):
        assert images_lib.decode(split[0][0]).shape == (8, 8, 3)


def test_manifest_without_splits_holds_out_a_share_of_every_class(tmp_path):
    text = 'label,path\n' + '\n'.join(f'{"ab"[i % 2]},{i}.png' for i in range(20))
    config = _write_manifest(tmp_path, text)
    config.data.val_fraction = 0.3
    source = open_dataset(config)
    assert np.bincount(source.val.labels).tolist() == [2, 3]  # By their names.
    assert len(set(source.train.paths) | set(source.val.paths)) == 20


@pytest.mark.parametrize(
    ('text', 'says'),
    [
        ('', 'must name the columns'),
        ('file,class\na.png,b', "it is 'file,class'"),
        ('path,label\n', 'has no rows'),
        ('path,label\na.png,b\nc.png\n', 'line 3 of .* has no label'),
        ('path,label\na.png,b\nc.png,d,e\n', 'line 3 of .* has 3 cells for 2 columns'),
        ('path,label,split\na.png,b,train', 'no rows of the split validation or val or test'),
        ('path,label,split\na.png,b,val', 'no rows of the split train; its splits are val'),
        ('path,label,split\na.png,b,train\nc.png,d,val', "validation images of 'd'"),
    ],
)
def test_manifest_that_is_not_one_is_one_sentence(tmp_path, text, says):
    with pytest.raises(UserError, match=says) as caught:
        open_dataset(_write_manifest(tmp_path, text))
    assert '\n' not in str(caught.value)


def test_synthetic_source_is_of_any_size_and_small_in_memory():
    source = open_dataset(_config(**{'data.source': 'synthetic:100000'}))
    assert (len(source.train), len(source.val)) == (100_000, 10_000)
    config = _config(**{'data.source': 'synthetic:100000', 'batch_size': 64})
    batch = next(make_train_batches(config, source.train)(0))
    assert batch['image'].shape == (64, 8, 8, 3)
    for text in ('synthetic', 'synthetic:x', 'synthetic:9'):
        with pytest.raises(UserError, match=r'how many images|synthetic:COUNT'):
            open_dataset(_config(**{'data.source': text}))


@pytest.mark.parametrize(('height', 'width'), [(64, 64), (100, 60), (3, 200), (1, 1)])
def test_crops_have_their_size_and_the_evaluation_crop_is_antialiased(height, width):
    checkerboard = (np.indices((height, width)).sum(0) % 2 * 255).astype(np.uint8)[..., None]
    got = crops.resize_and_center_crop(checkerboard, 4, 1.0)
    assert (got.dtype, got.shape) == (np.uint8, (4, 4, 3))
    if min(height, width) >= 60:
        assert abs(got.astype(int) - 127).max() <= 8
    for seed in range(5):
        uniforms = np.random.default_rng(seed).random((crops.BOX_TRIES, 4))
        cut = crops.random_resized_crop(checkerboard, 4, uniforms, 0.08)
        assert (cut.dtype, cut.shape) == (np.uint8, (4, 4, 3))


def test_evaluation_crop_takes_the_middle():
    image = np.zeros((256, 320, 3), np.uint8)
    image[16:-16, 48:-48] = 200
    assert (crops.resize_and_center_crop(image, 224, 224 / 256) == 200).all()


def test_random_crop_takes_every_place_of_the_middle_square():
    """Which is 12 by 12 pixels here, of an image whose pixels are their own row and column."""
    image = np.stack(np.broadcast_arrays(*np.ogrid[:12, :20], 0), -1).astype(np.uint8)
    seen = set()
    for seed in range(300):
        uniforms = np.random.default_rng(seed).random((crops.BOX_TRIES, 4))
        cut = crops.resize_and_random_crop(image, 9, uniforms, crop_fraction=0.75)
        top, left, _ = (int(x) for x in cut[0, 0])
        np.testing.assert_array_equal(cut, image[top : top + 9, left : left + 9])
        seen.add((top, left))
    assert seen == {(top, left) for top in range(4) for left in range(4, 8)}


def test_training_may_have_a_size_of_its_own(write_images):
    folder = write_images({f'{name}/{i}.png': (20, 30) for name in 'ab' for i in range(8)})
    for crop in ('none', 'random', 'random_resized'):
        config = _config(
            **{'data.source': f'folder:{folder}', 'augment.crop': crop, 'batch_size': 4},
            **{'data.eval_crop_fraction': 0.8, 'data.train_image_size': 6, 'data.image_size': 8},
        )
        source = open_dataset(config)
        assert next(make_train_batches(config, source.train)(0))['image'].shape[1:] == (6, 6, 3)
        assert next(make_eval_batches(config, source.val)())['image'].shape[1:] == (8, 8, 3)


def test_batches_follow_from_seed_and_step():
    split = _numbered(21)
    config = _config()
    batches = list(make_train_batches(config, split)(0))
    assert len(batches) == 3 * 2  # 21 // 8 steps, three epochs.
    orders = [np.concatenate([b['label'] for b in batches[i : i + 2]]) for i in (0, 2, 4)]
    for order in orders:
        assert len(set(order)) == 16  # No example twice in an epoch.
    assert not (orders[0] == orders[1]).all()
    for batch in batches:
        assert batch['image'].shape == (8, 8, 8, 3)
        assert batch['image'].dtype == np.uint8
        assert (batch['image'] == batch['label'][:, None, None, None]).all()
    for start in (1, 3, 5):  # Resuming starts with the very batch that would have come.
        for got, expected in zip(
            make_train_batches(config, split)(start), batches[start:], strict=True
        ):
            np.testing.assert_array_equal(got['label'], expected['label'])
    other = next(make_train_batches(_config(seed=1), split)(0))
    assert not (other['label'] == batches[0]['label']).all()


@pytest.mark.parametrize('threads', [1, 7])
def test_crops_belong_to_the_example_not_to_a_thread_or_process(write_images, threads):
    folder = write_images({f'{name}/{i}.png': (20, 30) for name in 'ab' for i in range(8)})
    config = _config(
        **{'data.source': f'folder:{folder}', 'augment.crop': 'random_resized'},
        **{'data.num_threads': threads, 'batch_size': 4},
    )
    split = open_dataset(config).train
    whole = list(make_train_batches(config, split)(0))
    halves = [
        make_train_batches(config, split, process_index=index, process_count=2)(1)
        for index in range(2)
    ]
    for batch in whole[1:]:
        parts = [next(half) for half in halves]
        for name in batch:
            np.testing.assert_array_equal(
                batch[name], np.concatenate([part[name] for part in parts])
            )
    assert not (whole[0]['image'] == whole[3]['image']).all()


@pytest.mark.parametrize(('count', 'batch_size'), [(23, 8), (5, 64), (16, 8), (1, 1)])
def test_evaluation_has_every_example_once(count, batch_size):
    batches = list(make_eval_batches(_config(batch_size=batch_size), _numbered(count))())
    assert {len(batch['label']) for batch in batches} == {batch_size}
    labels = np.concatenate([batch['label'][batch['mask']] for batch in batches])
    assert labels.tolist() == list(range(count))


def test_unreadable_file_is_named(write_images):
    folder = write_images({f'{name}/{i}.png': (8, 8) for name in 'ab' for i in range(5)})
    for path in folder.rglob('*.png'):
        path.write_bytes(path.read_bytes()[:60])
    config = _config(**{'data.source': f'folder:{folder}', 'batch_size': 8})
    source = open_dataset(config)
    for make in (lambda: make_train_batches(config, source.train)(0),
                 make_eval_batches(config, source.val)):  # fmt: skip
        with pytest.raises(RunError, match=r'[ab]/\d.png'):
            next(make())


def _write_idx(folder, train, test):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part, count in (('train', train), ('t10k', test)):
        pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        pack = lambda array: struct.pack(f'>HBB{array.ndim}I', 0, 8, array.ndim, *array.shape)  # noqa: E731
        for name, array in (('images-idx3', pixels), ('labels-idx1', labels)):
            data = pack(array) + array.tobytes()
            (folder / f'{part}-{name}-ubyte.gz').write_bytes(gzip.compress(data))
    return pixels, labels


def test_fashion_mnist_is_prepared_in_tfds_layout_and_read_back(tmp_path):
    import sys

    pixels, labels = _write_idx(tmp_path / 'idx', train=30, test=20)
    data_dir = tmp_path / 'tfds'
    prepare_fashion_mnist(tmp_path / 'idx', data_dir)
    assert find_prepared('fashion_mnist', data_dir) == data_dir / 'fashion_mnist/3.0.1'
    assert find_prepared('fashion_mnist:9.9.9', data_dir) is None
    overrides = {'data.source': 'tfds:fashion_mnist', 'data.data_dir': str(data_dir)}
    source = open_dataset(_config(**overrides))
    assert (len(source.train), len(source.val)) == (30, 20)
    assert source.class_names[9] == 'Ankle boot'
    # TFDS shuffles as it writes: the same pairs, in its own order.
    written = {image.tobytes(): label for image, label in zip(pixels, labels, strict=True)}
    read = {image.tobytes(): label for image, label in map(source.val.__getitem__, range(20))}
    assert read == written
    assert 'tensorflow' not in sys.modules
    with pytest.raises(UserError, match='no split nonsense'):
        open_dataset(_config(**overrides, **{'data.val_split': 'nonsense'}))
    half = open_dataset(_config(**overrides, **{'data.train_split': 'train[:50%]'}))
    assert len(half.train) == 15
    assert not half.notes


# Slices of a set of 30 and 20 -> how many of validation are trained on too; None: refused.
SLICES = {
    ('train', 'test'): 0, ('train[:20]', 'train[20:]'): 0, ('train', 'train[-5:]'): 5,
    ('train[:60%]', 'train[40%:]'): 6, ('train', 'train[:4]+test[:3]'): 4,
    ('train[20:10]', 'test'): None, ('train', 'test[50%:20%]'): None, ('train[:0]', 'test'): None,
    ('train', 'test[:200%]'): None, ('train[100:]', 'test'): None, ('train[', 'test'): None,
    ('train[::2]', 'test'): None, ('train', 'nonsense'): None, ('train[0.5:]', 'test'): None,
}  # fmt: skip


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp('prepared')
    _write_idx(folder / 'idx', train=30, test=20)
    prepare_fashion_mnist(folder / 'idx', folder / 'tfds')
    return {'data.source': 'tfds:fashion_mnist', 'data.data_dir': str(folder / 'tfds')}


@pytest.mark.parametrize(('train', 'val'), SLICES)
def test_slices_are_read_or_refused_and_what_they_share_is_told(train, val, prepared):
    config = _config(**prepared, **{'data.train_split': train, 'data.val_split': val})
    shared = SLICES[train, val]
    if shared is None:
        with pytest.raises(UserError, match=r'the split|no split') as caught:
            open_dataset(config)
        assert '\n' not in str(caught.value)
        return
    source = open_dataset(config)
    both = {image.tobytes() for image, _ in map(source.train.__getitem__, range(len(source.train)))}
    found = sum(source.val[index][0].tobytes() in both for index in range(len(source.val)))
    assert found == shared
    assert [note.split()[0] for note in source.notes] == ([str(shared)] if shared else [])


def test_prepared_version_and_config_are_found_by_what_is_named_of_them(tmp_path):
    for path in ('one/1.0.0', 'one/1.10.0', 'one/1.9.0', 'two/a/1.0.0', 'two/a/2.0.0',
                 'three/a/1.0.0', 'three/b/1.0.0'):  # fmt: skip
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / 'dataset_info.json').write_text('')
    for name, path in {
        'one': 'one/1.10.0', 'one:1.9.0': 'one/1.9.0', 'one:1.*.*': 'one/1.10.0',
        'two': 'two/a/2.0.0', 'two/a': 'two/a/2.0.0', 'two:1.0.0': 'two/a/1.0.0',
        'three/b': 'three/b/1.0.0',
    }.items():  # fmt: skip
        assert find_prepared(name, tmp_path) == tmp_path / path
    for name in ('one:2.0.0', 'two/b', 'four'):
        assert find_prepared(name, tmp_path) is None
    with pytest.raises(UserError, match='choose from tfds:three/a, tfds:three/b'):
        find_prepared('three', tmp_path)
    for name in ('one:/data', '/one', 'one:latest', 'a/b/c'):
        with pytest.raises(UserError, match='NAME'):
            find_prepared(name, tmp_path)


def test_damaged_idx_file_is_named(tmp_path):
    _write_idx(tmp_path / 'idx', train=30, test=20)
    path = tmp_path / 'idx/t10k-images-idx3-ubyte.gz'
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match='t10k-images'):
        prepare_fashion_mnist(tmp_path / 'idx', tmp_path / 'tfds')
    path.unlink()
    with pytest.raises(UserError, match='t10k-images'):
        prepare_fashion_mnist(tmp_path / 'idx', tmp_path / 'tfds')


_needs_fashion_mnist = pytest.mark.skipif(
    not DEBIAN_FASHION_MNIST.is_dir(), reason='Debian package is not installed'
)


@_needs_fashion_mnist
def test_files_of_the_real_fashion_mnist_have_its_70000_images():
    for prefix, count in (('train', 60_000), ('t10k', 10_000)):
        assert read_idx(DEBIAN_FASHION_MNIST, f'{prefix}-images-idx3').shape == (count, 28, 28)
        labels = read_idx(DEBIAN_FASHION_MNIST, f'{prefix}-labels-idx1')
        assert (np.bincount(labels) == count // 10).all()


@pytest.mark.weekly  # Half a minute of decoding.
@_needs_fashion_mnist
def test_real_fashion_mnist_has_its_70000_images():
    source = open_dataset(_config(**{'data.source': 'fashion_mnist'}))
    assert (len(source.train), len(source.val)) == (60_000, 10_000)
    assert (np.bincount(source.train.labels) == 6000).all()
    assert round(float(source.train.images.mean()) / 255, 3) == 0.286


@pytest.mark.parametrize(
    ('source', 'says'),
    [
        (
            'tfds:imagenet2012',
            'flaxcls data prepare --name=imagenet2012 --data_dir=',
        ),
        ('tfds:', 'choose digits'),
        ('mnist', 'choose digits'),
        ('folder:/no/such/place', 'there is no folder'),
    ],
)
def test_missing_source_is_one_sentence_with_the_remedy(tmp_path, source, says):
    with pytest.raises(UserError) as caught:
        open_dataset(_config(**{'data.source': source, 'data.data_dir': str(tmp_path)}))
    assert says in str(caught.value)
    assert '\n' not in str(caught.value)
