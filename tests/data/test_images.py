"""Every kind of image file that people have, read to the pixel, or refused with a reason."""

import io
import os
import shutil
import struct
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

import flaxcls
from flaxcls.config.files import load_config
from flaxcls.data import crops, images
from flaxcls.errors import RunError, UserError
from tests.helpers.configs import TINY
from tests.helpers.unpack import load_dataset, make_eval_batches, make_train_batches

HEIGHT, WIDTH = 24, 40
# Smooth, so that lossy files stay near it; no two corners alike, so that no turn goes unseen.
_ROWS, _COLUMNS = np.mgrid[0:HEIGHT, 0:WIDTH]
RGB = np.stack([_ROWS * 8 + 30, _COLUMNS * 5 + 20, 200 - _ROWS * 4 - _COLUMNS], -1).astype(np.uint8)
GREY = np.asarray(Image.fromarray(RGB).convert('L'))
OPAQUE = ((_ROWS // 6 + _COLUMNS // 6) % 2 * 255).astype(np.uint8)
SIXTEEN = (GREY.astype(np.uint16) << 8) + 77


def _encode(image, kind, **options):
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **options)
    return file.getvalue()


def _turned(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _encode(RGB, kind, exif=exif)


def _png(depth, color_type, rows, *extra):
    """A PNG written by hand, for what Pillow cannot write."""
    chunk = lambda name, data: (  # noqa: E731
        struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
    )
    header = struct.pack('>IIBBBBB', WIDTH, HEIGHT, depth, color_type, 0, 0, 0)
    pixels = b''.join(b'\0' + row.tobytes() for row in rows)
    chunks = [(b'IHDR', header), *extra, (b'IDAT', zlib.compress(pixels)), (b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunk(*item) for item in chunks)


def _palette():
    return Image.fromarray(RGB).quantize(256, dither=Image.Dither.NONE)


def _palette_of(indices, *colours):
    image = Image.fromarray(indices, 'P')
    image.putpalette([value for colour in colours for value in colour])
    return image


def _frames(kind, **options):
    others = [Image.fromarray(255 - RGB)] * 2
    return _encode(RGB, kind, save_all=True, append_images=others, **options)


def _ycck():
    """A CMYK JPEG with Adobe's marker, its transform changed from CMYK to YCCK."""
    cmyk = np.asarray(Image.fromarray(RGB).convert('CMYK'))
    ycc = np.asarray(Image.fromarray(cmyk[..., :3]).convert('YCbCr'))
    # Adobe's are inverted: Pillow inverts once as it writes, and libjpeg turns YCC to 255 - RGB.
    ycck = Image.fromarray(np.dstack([255 - ycc, cmyk[..., 3]]), 'CMYK')
    data = bytearray(_encode(ycck, 'JPEG', quality=98, subsampling=0))
    adobe = data.index(b'Adobe')
    data[adobe + 11] = 2
    return bytes(data)


def _over_white(image):
    return np.where(OPAQUE[..., None] == 255, image, 255)


def _repeat(grey):
    return np.repeat(grey[..., None], 3, -1)


_BIG_ENDIAN = SIXTEEN.astype('>u2')
_RGB_16 = ((RGB.astype(np.uint16) << 8) + 99).astype('>u2')
_RGBA = np.dstack([RGB, OPAQUE])
_BLACK_AND_WHITE = np.where(GREY > 120, 255, 0).astype(np.uint8)

# What a viewer shows of RGB stored with each EXIF orientation (CIPA DC-008, 4.6.4).
_TURNED = {
    1: RGB,
    2: np.fliplr(RGB),
    3: np.rot90(RGB, 2),
    4: np.flipud(RGB),
    5: RGB.transpose(1, 0, 2),
    6: np.rot90(RGB, -1),
    7: np.rot90(RGB, 2).transpose(1, 0, 2),
    8: np.rot90(RGB, 1),
}

# Name -> (bytes, upright RGB pixels, largest mean difference in grey levels).
READABLE: dict[str, tuple[bytes, np.ndarray, float]] = {
    'jpeg': (_encode(RGB, 'JPEG', quality=95), RGB, 2),
    'jpeg 4:4:4': (_encode(RGB, 'JPEG', quality=95, subsampling=0), RGB, 2),
    'jpeg, progressive': (_encode(RGB, 'JPEG', quality=95, progressive=True), RGB, 2),
    'jpeg, grey': (_encode(GREY, 'JPEG', quality=95), _repeat(GREY), 2),
    'jpeg, CMYK': (_encode(Image.fromarray(RGB).convert('CMYK'), 'JPEG', quality=95), RGB, 3),
    'jpeg, YCCK': (_ycck(), RGB, 4),
    'jpeg, several pictures (MPO)': (_frames('MPO', quality=95), RGB, 2),
    'jpeg, rubbish after its end': (_encode(RGB, 'JPEG', quality=95) + b'rubbish' * 9, RGB, 2),
    'jpeg, damaged EXIF': (_encode(RGB, 'JPEG', quality=95, exif=b'Exif\0\0II*\0\xff\xff'), RGB, 2),
    **{
        f'{kind}, EXIF orientation {orientation}': (
            _turned(orientation, kind),
            _TURNED[orientation],
            3,
        )
        for kind in ('JPEG', 'PNG', 'TIFF', 'WEBP')
        for orientation in range(1, 9)
    },
    'png': (_encode(RGB, 'PNG'), RGB, 0),
    'png, grey': (_encode(GREY, 'PNG'), _repeat(GREY), 0),
    'png, 1 bit': (
        _encode(Image.fromarray(_BLACK_AND_WHITE).convert('1'), 'PNG'),
        _repeat(_BLACK_AND_WHITE),
        0,
    ),
    'png, palette': (_encode(_palette(), 'PNG'), np.asarray(_palette().convert('RGB')), 0),
    'png, alpha': (_encode(_RGBA, 'PNG'), _over_white(RGB), 0),
    'png, grey and alpha': (
        _encode(Image.fromarray(np.dstack([GREY, OPAQUE]), 'LA'), 'PNG'),
        _over_white(_repeat(GREY)),
        0,
    ),
    'png, palette with a transparent colour': (
        _png(8, 3, OPAQUE // 255, (b'PLTE', bytes([9, 9, 9, 60, 70, 80])), (b'tRNS', b'\0')),
        _over_white(np.full_like(RGB, [60, 70, 80])),
        0,
    ),
    'png, transparent colour': (
        _png(8, 2, _over_white(RGB) // 2, (b'tRNS', struct.pack('>HHH', 127, 127, 127))),
        _over_white(RGB // 2),
        0,
    ),
    'png, 16-bit grey': (_encode(SIXTEEN, 'PNG'), _repeat(GREY), 0),
    'png, 16-bit grey with a transparent one': (
        _png(16, 0, np.where(OPAQUE == 255, _BIG_ENDIAN, 7).astype('>u2'), (b'tRNS', b'\0\7')),
        _over_white(_repeat(GREY)),
        0,
    ),
    'png, 16-bit colour': (_png(16, 2, _RGB_16), RGB, 0),
    'png, 16-bit colour and alpha': (
        _png(16, 6, np.dstack([_RGB_16, OPAQUE.astype(np.uint16) * 257]).astype('>u2')),
        _over_white(RGB),
        0,
    ),
    'png, 16-bit grey and alpha': (
        _png(16, 4, np.dstack([_BIG_ENDIAN, OPAQUE.astype(np.uint16) * 257]).astype('>u2')),
        _over_white(_repeat(GREY)),
        0,
    ),
    'png, animated': (_frames('PNG'), RGB, 0),
    'gif': (_encode(_palette(), 'GIF'), np.asarray(_palette().convert('RGB')), 0),
    'gif, animated': (_frames('GIF'), RGB, 12),
    'gif, transparent': (
        _encode(_palette_of(OPAQUE // 255, (9, 9, 9), (60, 70, 80)), 'GIF', transparency=0),
        _over_white(np.full_like(RGB, [60, 70, 80])),
        0,
    ),
    'webp': (_encode(RGB, 'WEBP', quality=95), RGB, 4),
    'webp, lossless': (_encode(RGB, 'WEBP', lossless=True), RGB, 0),
    'webp, alpha': (_encode(_RGBA, 'WEBP', lossless=True), _over_white(RGB), 0),
    'webp, animated': (_frames('WEBP', lossless=True), RGB, 0),
    'bmp': (_encode(RGB, 'BMP'), RGB, 0),
    'bmp, grey': (_encode(GREY, 'BMP'), _repeat(GREY), 0),
    'bmp, 1 bit': (
        _encode(Image.fromarray(_BLACK_AND_WHITE).convert('1'), 'BMP'),
        _repeat(_BLACK_AND_WHITE),
        0,
    ),
    'tiff': (_encode(RGB, 'TIFF'), RGB, 0),
    'tiff, LZW': (_encode(RGB, 'TIFF', compression='tiff_lzw'), RGB, 0),
    'tiff, JPEG inside': (_encode(RGB, 'TIFF', compression='jpeg', quality=95), RGB, 3),
    'tiff, CMYK': (_encode(Image.fromarray(RGB).convert('CMYK'), 'TIFF'), RGB, 1),
    'tiff, 16-bit grey': (_encode(SIXTEEN, 'TIFF'), _repeat(GREY), 0),
    'tiff, alpha': (_encode(_RGBA, 'TIFF'), _over_white(RGB), 0),
    'tiff, several pages': (_frames('TIFF'), RGB, 0),
    'ppm': (_encode(RGB, 'PPM'), RGB, 0),
    'pgm, 16-bit': (
        b'P5 %d %d 65535\n' % (WIDTH, HEIGHT) + _BIG_ENDIAN.tobytes(),
        _repeat(GREY),
        0,
    ),
    'avif': (_encode(RGB, 'AVIF', quality=95), RGB, 4),
    '1 x 1': (_encode(RGB[:1, :1], 'PNG'), RGB[:1, :1], 0),
    '1 x 40': (_encode(RGB[:1], 'JPEG', quality=98), RGB[:1], 4),
    '4000 x 2': (_encode(np.tile(RGB[:2], (1, 100, 1)), 'PNG'), np.tile(RGB[:2], (1, 100, 1)), 0),
}

UNREADABLE = {
    'empty': b'',
    'text': b'this is not an image',
    'html': b'<html><body>404</body></html>',
    'jpeg, first half': READABLE['jpeg'][0][: len(READABLE['jpeg'][0]) // 2],
    'jpeg, header alone': READABLE['jpeg'][0][:200],
    'jpeg, two bytes': b'\xff\xd8',
    'jpeg, last bytes missing': READABLE['jpeg'][0][:-2],
    'png, first half': READABLE['png'][0][: len(READABLE['png'][0]) // 2],
    'png, damaged': READABLE['png'][0].replace(b'IDAT', b'JUNK'),
    'gif, header alone': READABLE['gif'][0][:20],
    'webp, first half': READABLE['webp'][0][: len(READABLE['webp'][0]) // 2],
    'tiff, first half': READABLE['tiff'][0][: len(READABLE['tiff'][0]) // 2],
    'tiff, floating point': _encode(Image.fromarray(GREY.astype(np.float32)), 'TIFF'),
    'tiff, 32-bit grey': _encode(Image.fromarray(GREY.astype(np.int32) << 20), 'TIFF'),
    'svg': b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    'pdf': b'%PDF-1.7\n',
}


@pytest.mark.parametrize('kind', READABLE)
def test_readable_kinds_are_read_to_the_pixel(kind):
    data, expected, tolerance = READABLE[kind]
    got = images.decode(data)
    assert (got.dtype, got.shape) == (np.uint8, expected.shape)
    assert np.abs(got.astype(int) - expected).mean() <= tolerance
    size = images.open_image(data).size
    assert size in (None, got.shape[:2])
    if kind.startswith('jpeg,') and 'YCCK' not in kind and 'CMYK' not in kind:
        assert size


@pytest.mark.parametrize('kind', UNREADABLE)
def test_unreadable_kinds_are_refused(kind):
    with pytest.raises(ValueError, match='no readable image'):
        images.decode(UNREADABLE[kind])


def test_jpegs_of_rare_subsampling_are_pillows_to_read():
    data = READABLE['jpeg'][0]
    place = data.index(b'\xff\xc0') + 11  # Of the sampling factors of the first component.
    assert data[place] == 0x22
    rare = data[:place] + b'\x14' + data[place + 1 :]  # 4:4:1, with as many blocks to an MCU.
    assert images.decode(rare).shape == RGB.shape
    assert images.open_image(rare).size is None


@pytest.mark.parametrize('kind', READABLE)
def test_pixels_are_counted_without_being_decoded(kind, monkeypatch):
    data, expected, _ = READABLE[kind]
    pixels = expected.shape[0] * expected.shape[1]
    monkeypatch.delattr(ImageFile.ImageFile, 'load')
    images.require_pixels(data, pixels)
    with pytest.raises(images.TooManyPixels, match=f'are more than {pixels - 1}'):
        images.require_pixels(data, pixels - 1)


@pytest.mark.parametrize('kind', ['empty', 'text', 'jpeg, two bytes', 'svg'])
def test_what_has_no_header_has_no_pixels(kind):
    with pytest.raises(ValueError, match='no readable image') as error:
        images.require_pixels(UNREADABLE[kind], 1_000_000)
    assert not isinstance(error.value, images.TooManyPixels)


def test_more_pixels_than_pillow_opens_are_too_many(monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    with pytest.raises(images.TooManyPixels):
        images.require_pixels(READABLE['png'][0], 1_000_000)
    for data in (READABLE['png'][0], _turned(6, 'JPEG')):
        with pytest.raises(ValueError, match='exceeds limit'):
            images.decode(data)


def test_jpegs_have_pillows_very_pixels():
    for kind in ('jpeg', 'jpeg 4:4:4', 'jpeg, progressive', 'jpeg, grey'):
        data = READABLE[kind][0]
        with Image.open(io.BytesIO(data)) as picture:
            np.testing.assert_array_equal(images.decode(data), np.asarray(picture.convert('RGB')))


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('share', [0.6, 0.5, 0.3, 0.1])
def test_smaller_decoding_shows_the_same_and_no_less_than_asked(orientation, share):
    exif = Image.Exif()
    exif[0x0112] = orientation
    large = np.asarray(Image.fromarray(RGB).resize((10 * WIDTH, 10 * HEIGHT)))
    data = _encode(large, 'JPEG', quality=95, exif=exif)
    whole, reduced = images.decode(data), images.open_image(data).decode(share)
    assert images.open_image(data).size == whole.shape[:2]
    assert (share > 0.5) == (reduced.shape == whole.shape)
    for side, full in zip(reduced.shape[:2], whole.shape[:2], strict=True):
        assert share * full <= side <= full
    expected = Image.fromarray(whole).resize(reduced.shape[1::-1], Image.Resampling.BOX)
    assert np.abs(reduced.astype(int) - np.asarray(expected)).mean() < 1.5
    fast = images.open_image(data).decode(share, fast=True)
    assert np.abs(fast.astype(int) - reduced).mean() < 2


def _photograph(height, width, seed):
    """Structure at every scale, as in photographs."""
    rng = np.random.default_rng(seed)
    layers = []
    for size in (3, 6, 12, 25, 50, 100, 200):
        noise = rng.normal(128, 90 / np.log2(size), (size, size, 3)).clip(0, 255)
        layers.append(
            np.asarray(Image.fromarray(noise.astype(np.uint8)).resize((width, height), 3))
        )
    return np.mean(layers, 0).astype(np.uint8)


def _pillows_evaluation_crop(image, size, crop_fraction):
    """Resize and CenterCrop as torchvision's references do it on a Pillow image."""
    shorter = round(size / crop_fraction)
    scale = shorter / min(image.shape[:2])
    height, width = (max(shorter, round(side * scale)) for side in image.shape[:2])
    resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    top, left = (height - size) // 2, (width - size) // 2
    return resized[top : top + size, left : left + size]


@pytest.mark.parametrize(
    ('height', 'width'), [(375, 500), (500, 375), (1200, 1600), (200, 150), (90, 700), (256, 256)]
)
@pytest.mark.parametrize('crop_fraction', [0.875, 1.0])
def test_evaluation_crop_is_pillows(height, width, crop_fraction):
    image = _photograph(height, width, seed=0)
    arguments = {'size': 112, 'crop_fraction': crop_fraction}
    got = crops.resize_and_center_crop(image, **arguments).astype(int)
    assert np.abs(got - _pillows_evaluation_crop(image, **arguments)).max() <= 1
    data = _encode(image, 'JPEG', quality=95)
    got = crops.resize_and_center_crop(data, **arguments).astype(int)
    expected = _pillows_evaluation_crop(images.decode(data), **arguments)
    assert np.abs(got - expected).mean() < 0.5
    # What data.cache keeps leads to the same crop.
    reduced = crops.reduce_shorter_side(data, round(112 / crop_fraction))
    got = crops.resize_and_center_crop(reduced, **arguments).astype(int)
    assert np.abs(got - expected).mean() < 0.5


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'array'])
def test_random_crop_shows_the_part_that_was_drawn(kind):
    image = _photograph(300, 400, seed=1)
    data = (
        image
        if kind == 'array'
        else _encode(image, kind, **{'quality': 95} if kind == 'JPEG' else {})
    )
    for uniforms in np.random.default_rng(0).random((20, crops.BOX_TRIES, 4)):
        got = crops.random_resized_crop(data, 32, uniforms, 0.08)
        top, left, height, width = crops.draw_box(300, 400, uniforms, 0.08)
        box = (left, top, left + width, top + height)
        expected = Image.fromarray(image).resize((32, 32), Image.Resampling.BOX, box)
        assert np.abs(got.astype(int) - np.asarray(expected)).mean() < 8


def test_drawn_boxes_have_the_papers_areas_and_ratios():
    uniforms = np.random.default_rng(0).random((2000, crops.BOX_TRIES, 4))
    boxes = np.array([crops.draw_box(300, 400, row, 0.08) for row in uniforms])
    top, left, height, width = boxes.T
    assert (boxes >= 0).all()
    assert (top + height <= 300).all()
    assert (left + width <= 400).all()
    share, ratio = height * width / (300 * 400), width / height
    assert 0.07 < share.min() < 0.1
    assert 0.9 < share.max() <= 1
    assert 0.74 < ratio.min() < 0.76
    assert 1.32 < ratio.max() < 1.35
    # Where they fit, every place is as likely as another.
    assert abs((top / np.maximum(300 - height, 1)).mean() - 0.5) < 0.05
    assert abs((left / np.maximum(400 - width, 1)).mean() - 0.5) < 0.05


def test_very_long_images_take_little_memory():
    long = np.zeros((1, 60_000, 3), np.uint8)
    tracemalloc.start()
    for cut in (
        lambda: crops.resize_and_center_crop(long, 224, 0.875),
        lambda: crops.random_resized_crop(long, 224, np.full((10, 4), 0.5), 0.08),
    ):
        assert cut().shape == (224, 224, 3)
    assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    tracemalloc.stop()


@pytest.fixture
def torture(tmp_path):
    """A folder of every readable kind, two classes, with misleading names."""
    for index, (data, _, _) in enumerate(READABLE.values()):
        suffix = ('.jpg', '.png', '', '.dat', '.JPEG')[index % 5]
        for part in ('train', 'val'):
            path = tmp_path / part / 'ab'[index % 2] / f'{index:03d}{suffix}'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return tmp_path


def _config(folder, **overrides):
    overrides = {key.replace('__', '.'): value for key, value in overrides.items()}
    return load_config(None, TINY | {'data.source': f'folder:{folder}'} | overrides)


def test_folder_of_all_kinds_is_taken_whole(torture):
    source = load_dataset(_config(torture))
    assert len(source.train) == len(source.val) == len(READABLE) >= 30
    assert source.notes == ()
    expected = list(READABLE.values())
    for index in range(len(source.train)):
        data, _ = source.train[index]
        assert data == expected[int(source.train.name(index)[-8:].split('/')[-1][:3])][0]


def test_training_on_all_kinds_reaches_its_end(torture, tmp_path):
    overrides = {'batch_size': 16, 'num_epochs': 1, 'augment__crop': 'random_resized'}
    _, history = flaxcls.train_and_evaluate(_config(torture, **overrides), tmp_path / 'run')
    assert history[-1]['val/count'] == len(READABLE)


def _plant(folder):
    """Adds every unreadable kind to both splits, and returns how many."""
    for part in ('train', 'val'):
        for index, data in enumerate(UNREADABLE.values()):
            (folder / part / 'a' / f'bad{index}.jpg').write_bytes(data)
    return len(UNREADABLE)


def test_unreadable_files_stop_the_run_before_it_begins(torture):
    planted = _plant(torture)
    with pytest.raises(RunError, match='cannot be read') as caught:
        load_dataset(_config(torture))
    message = str(caught.value)
    assert message.startswith(f'{planted} of {planted + len(READABLE)} training images')
    assert message.count('/bad') == 5
    assert f'and {planted - 5} more' in message
    assert 'data.on_error=skip' in message
    assert '\n' not in message


def test_unreadable_files_are_left_out_when_asked_and_counted(torture):
    planted = _plant(torture)
    source = load_dataset(_config(torture, data__on_error='skip'))
    for split, name in ((source.train, 'training'), (source.val, 'validation')):
        assert len(split) == len(READABLE)
        assert not any('/bad' in split.name(index) for index in range(len(split)))
        note = next(note for note in source.notes if name in note)
        assert note.startswith(f'{planted} of {planted + len(READABLE)} {name} images')


def test_scan_reads_a_file_again_only_when_it_has_changed(torture, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    load_dataset(_config(torture))
    assert f'Reading {len(READABLE):,} image files' in capsys.readouterr().out
    load_dataset(_config(torture))
    assert capsys.readouterr().out == ''
    path = next((torture / 'train/a').iterdir())
    path.write_bytes(b'overwritten')
    with pytest.raises(RunError, match=f'1 of {len(READABLE)} training .*{path.name}'):
        load_dataset(_config(torture))
    assert 'Reading 1 image files' in capsys.readouterr().out
    with pytest.raises(RunError, match=path.name):  # What could not be read is not remembered.
        load_dataset(_config(torture))


def test_evaluation_leaves_the_training_files_unread(torture):
    (next((torture / 'train/a').iterdir())).write_bytes(b'overwritten')
    assert len(load_dataset(_config(torture), for_training=False).val) == len(READABLE)


def _all_batches(config, source):
    yield from make_eval_batches(config, source.val)()
    yield from make_train_batches(config, source.train)(0)


@pytest.mark.parametrize('kind', ['memory', 'disk'])
def test_cached_images_are_those_that_would_be_read(torture, tmp_path, monkeypatch, capsys, kind):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    options = {'data__image_size': 20, 'data__eval_crop_fraction': 0.9}
    config = _config(torture, data__cache=kind, **options)
    plain = load_dataset(_config(torture, **options))
    for _ in range(2):
        cached = load_dataset(config)
        batches = _all_batches(config, cached), _all_batches(config, plain)
        for got, expected in zip(*batches, strict=True):
            np.testing.assert_array_equal(got['label'], expected['label'])
            assert np.abs(got['image'].astype(int) - expected['image']).mean() < 0.5
        assert cached.val.name(3) == plain.val.name(3)
    assert capsys.readouterr().out.count('Decoding') == (2 if kind == 'disk' else 4)


def test_cache_on_disk_is_made_anew_when_a_file_has_changed(torture, tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    config = _config(torture, data__cache='disk')
    before, _ = load_dataset(config).train[0]
    path = torture / 'train/a/000.jpg'
    path.write_bytes(_encode(255 - RGB, 'PNG'))
    after, _ = load_dataset(config).train[0]
    assert np.abs(after.astype(int) - before).mean() > 20


@pytest.mark.parametrize('kind', ['memory', 'disk'])
def test_cache_that_would_not_fit_is_refused(torture, monkeypatch, kind):
    usage = shutil.disk_usage(torture)._replace(free=1000)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage)
    monkeypatch.setattr(os, 'sysconf', lambda name: 30)  # Bytes a page, and pages.
    with pytest.raises(UserError, match=f'config.data.cache={kind!r} needs about'):
        load_dataset(_config(torture, data__cache=kind))


_MEASURE = """
import resource, sys, flaxcls
overrides = dict(argument.split('=', 1) for argument in sys.argv[2:])
flaxcls.train_and_evaluate(flaxcls.load_config(None, overrides), sys.argv[1])
print('KiB:', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.weekly  # Fifty thousand files.
def test_memory_does_not_grow_with_the_folder(tmp_path):
    peaks = {}
    for count, epochs in ((500, 100), (50_000, 1)):
        folder = tmp_path / str(count)
        for index in range(count):
            path = folder / 'train' / str(index % 2) / f'{index}.jpg'
            path.parent.mkdir(parents=True, exist_ok=True)
            if index < 100:
                path.write_bytes(_encode(_photograph(48, 64, index), 'JPEG'))
            else:
                os.link(folder / 'train' / str(index % 2) / f'{index % 100}.jpg', path)
        (folder / 'val').symlink_to(folder / 'train')
        options = TINY | {
            'data.source': f'folder:{folder}',
            'batch_size': 100,
            'num_epochs': epochs,
        }
        options |= {'augment.crop': 'random_resized', 'eval_every_epochs': epochs}
        arguments = [f'{key}={value}' for key, value in options.items()]
        out = subprocess.run(
            [sys.executable, '-c', _MEASURE, str(tmp_path / f'run{count}'), *arguments],
            capture_output=True, text=True, check=True,
            env=os.environ | {'XDG_CACHE_HOME': str(tmp_path / 'cache')},
        ).stdout  # fmt: skip
        assert 'step 500/500' in out
        peaks[count] = int(out.split('KiB:')[1]) / 1024

    assert peaks[50_000] - peaks[500] < 100, peaks
