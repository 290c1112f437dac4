"""Augmentations against Pillow and NumPy, and what holds for all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from flaxcls.augment import image_ops, transforms
from flaxcls.config.files import load_config
from flaxcls.config.validation import validate
from flaxcls.data.datasets import ArraySplit
from flaxcls.errors import UserError
from flaxcls.training.parallel import AXIS
from tests.helpers.configs import TINY
from tests.helpers.unpack import make_augment, make_mix, make_train_batches

HEIGHT, WIDTH = 40, 32


def _photograph(seed=0, low=20, high=230):
    """Smooth, so that a shift by a rounded pixel shows as little."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(low, high, (6, 5, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def _apply(name, strength, image):
    index = image_ops.OPERATIONS.index(name)
    return np.asarray(
        jax.jit(image_ops.apply_operation)(image.astype(np.float32), index, float(strength))
    )


def _shear(image, x=0.0, y=0.0):
    return image.transform(image.size, Image.Transform.AFFINE, (1, x, 0, y, 1, 0), 2)


def _translate(image, x=0.0, y=0.0):
    return image.transform(image.size, Image.Transform.AFFINE, (1, 0, x, 0, 1, y), 2)


# Operation -> what Pillow makes of the same image and strength.
ORACLES = {
    'identity': lambda image, s: image,
    'shear_x': lambda image, s: _shear(image, x=s),
    'shear_y': lambda image, s: _shear(image, y=s),
    'translate_x': lambda image, s: _translate(image, x=s),
    'translate_y': lambda image, s: _translate(image, y=s),
    'rotate': lambda image, s: image.rotate(s, Image.Resampling.BILINEAR),
    'brightness': lambda image, s: ImageEnhance.Brightness(image).enhance(1 + s),
    'color': lambda image, s: ImageEnhance.Color(image).enhance(1 + s),
    'contrast': lambda image, s: ImageEnhance.Contrast(image).enhance(1 + s),
    'sharpness': lambda image, s: ImageEnhance.Sharpness(image).enhance(1 + s),
    'posterize': lambda image, s: ImageOps.posterize(image, int(s)),
    'solarize': lambda image, s: ImageOps.solarize(image, s),
    'autocontrast': lambda image, s: ImageOps.autocontrast(image),
    'equalize': lambda image, s: ImageOps.equalize(image),
}
STRENGTHS = dict.fromkeys(image_ops.OPERATIONS, (-0.9, -0.3, 0.0, 0.5, 0.9)) | {
    'shear_x': (-0.3, 0.0, 0.99),
    'shear_y': (-0.3, 0.0, 0.99),
    'translate_x': (-7.0, 0.0, 3.5),
    'translate_y': (-7.0, 0.0, 3.5),
    'rotate': (-30.0, 0.0, 9.0, 135.0),
    'posterize': (1, 4, 8),
    'solarize': (0.0, 110.0, 255.0),
}


def test_every_operation_has_an_oracle():
    assert set(ORACLES) == set(image_ops.OPERATIONS) == set(STRENGTHS)


@pytest.mark.parametrize('name', image_ops.OPERATIONS)
def test_operation_is_pillows(name):
    for seed, strength in enumerate(STRENGTHS[name]):
        image = _photograph(seed)
        expected = np.asarray(ORACLES[name](Image.fromarray(image), strength)).astype(int)
        got = _apply(name, strength, image)
        assert got.shape == image.shape
        assert got.min() >= 0
        assert got.max() <= 255
        inner = np.ones(image.shape[:2], bool)
        if name in image_ops.OPERATIONS[1:6]:  # Pillow cuts off, where here black blends in.
            ones = np.full_like(image, 255)
            kept = np.asarray(ORACLES[name](Image.fromarray(ones), strength)).min(-1)
            framed = np.pad(kept[1:-1, 1:-1], 1)
            inner = np.asarray(Image.fromarray(framed).filter(ImageFilter.MinFilter(5))) == 255
            assert inner.mean() > 0.1
            outside = np.asarray(Image.fromarray(kept).filter(ImageFilter.MaxFilter(5))) == 0
            assert (got[outside] == 0).all()
        assert np.abs(got - expected)[inner].max() <= 1, strength


@pytest.mark.parametrize('image', [np.full((9, 7, 3), 77, np.uint8), np.zeros((9, 7, 3), np.uint8)])
@pytest.mark.parametrize('name', ['autocontrast', 'equalize', 'contrast', 'sharpness'])
def test_flat_images_survive(name, image):
    expected = np.asarray(ORACLES[name](Image.fromarray(image), 0.5)).astype(int)
    assert np.abs(_apply(name, 0.5, image) - expected).max() <= 1


@pytest.mark.parametrize('turn', [-0.5, -0.2, 0.0, 0.1, 0.4])
def test_hue_is_pillows(turn):
    image = _photograph()
    hsv = np.array(Image.fromarray(image).convert('HSV'))
    hsv[..., 0] += np.uint8(round(turn * 255) % 256)
    expected = np.asarray(Image.fromarray(hsv, 'HSV').convert('RGB')).astype(int)
    got = np.asarray(image_ops.shift_hue(image.astype(np.float32), turn))
    # Pillow keeps the hue in 8 bits, so the bound is a step of it.
    assert np.abs(got - expected).mean() < 2.5
    if turn == 0:
        assert np.abs(got - image).max() < 1e-3
    greys = np.full((4, 4, 3), 90, np.float32)
    assert np.abs(np.asarray(image_ops.shift_hue(greys, turn)) - 90).max() < 1e-4


OPTIONS = {
    'pad': {'augment.crop': 'pad', 'augment.pad': 2},
    'random_resized': {'augment.crop': 'random_resized', 'augment.crop_on': 'device'},
    'flip': {'augment.flip': True},
    'color_jitter': {'augment.color_jitter': (0.4, 0.4, 0.4, 0.1)},
    'lighting': {'augment.lighting': 0.1},
    'randaugment': {'augment.policy': 'randaugment'},
    'trivialaugment': {'augment.policy': 'trivialaugment'},
    'erase': {'augment.erase': 0.5},
    'cutout': {'augment.cutout': 9},
}


def _config(**overrides):
    overrides = {key.replace('__', '.'): value for key, value in overrides.items()}
    config = load_config(None, TINY | overrides)
    config.model.num_classes = 10
    return config


def _augmented(config, seed=0, count=64):
    keys = jax.random.split(jax.random.key(seed), count)
    images = np.stack([_photograph(i) for i in range(count)]).astype(np.float32)
    return images, np.asarray(jax.jit(make_augment(config))(keys, images))


@pytest.mark.parametrize('name', OPTIONS)
def test_augmentation_changes_images_by_their_keys_alone(name):
    config = load_config(None, TINY | OPTIONS[name])
    validate(config)
    images, got = _augmented(config)
    assert got.shape == images.shape
    assert got.dtype == np.float32
    assert got.min() >= 0
    assert got.max() <= 255
    changed = (got != images).any((1, 2, 3)).mean()
    assert changed > 0.3
    np.testing.assert_array_equal(_augmented(config)[1], got)
    assert (_augmented(config, seed=1)[1] != got).any()


def test_without_options_images_stay():
    images, got = _augmented(_config())
    np.testing.assert_array_equal(got, images)


def test_switching_one_on_leaves_the_draws_of_the_others():
    both = load_config(None, TINY | OPTIONS['flip'] | OPTIONS['cutout'])
    _, flipped = _augmented(load_config(None, TINY | OPTIONS['flip']))
    _, cut_too = _augmented(both)
    fill = 255 * np.array(both.data.mean, np.float32)
    kept = np.abs(cut_too - fill).max(-1) > 1e-3
    assert 0.5 < kept.mean() < 1
    np.testing.assert_array_equal(cut_too[kept], flipped[kept])


def test_flips_happen_half_of_the_time():
    images, got = _augmented(load_config(None, TINY | OPTIONS['flip']), count=1000)
    flipped = (got == images[:, :, ::-1]).all((1, 2, 3))
    assert (flipped | (got == images).all((1, 2, 3))).all()
    assert 0.45 < flipped.mean() < 0.55


def test_erased_parts_have_the_papers_size_and_frequency():
    config = load_config(None, TINY | OPTIONS['erase'])
    fill = 255 * np.array(config.data.mean, np.float32)
    _, got = _augmented(config, count=1000)
    erased = (np.abs(got - fill).max(-1) < 1e-3).mean((1, 2))
    assert 0.45 < (erased > 0).mean() < 0.55
    assert erased.max() < 0.38
    assert 0.1 < erased[erased > 0].mean() < 0.2


def test_cutout_takes_a_square_of_its_side():
    config = load_config(None, TINY | OPTIONS['cutout'])
    fill = 255 * np.array(config.data.mean, np.float32)
    _, got = _augmented(config, count=200)
    cut = np.abs(got - fill).max(-1) < 1e-3
    rows, columns = cut.any(2).sum(1), cut.any(1).sum(1)
    assert rows.max() == columns.max() == 9
    assert ((rows * columns) == cut.sum((1, 2))).all()  # A rectangle, where it meets the border.
    assert (rows >= 4).all()


def test_crops_on_the_device_show_a_part_of_the_image():
    """A ramp stays a ramp, over a shorter range: its ends show which part was cut."""
    ramp = np.stack(np.broadcast_arrays(*np.mgrid[0:64, 0:64], 0), -1).astype(np.float32) * 4
    keys = jax.random.split(jax.random.key(0), 500)
    crop = lambda key: transforms.random_resized_crop(key, ramp, min_area=0.08)  # noqa: E731
    got = np.asarray(jax.jit(jax.vmap(crop))(keys))
    inner = got[:, 8:-8, 8:-8]
    heights = (inner[:, -1, 0, 0] - inner[:, 0, 0, 0]) / 4 / 47
    widths = (inner[:, 0, -1, 1] - inner[:, 0, 0, 1]) / 4 / 47
    area, ratio = heights * widths, widths / heights
    assert 0.07 < area.min() < 0.15
    assert 0.8 < area.max() < 1.05
    assert 0.7 < ratio.min() < 0.8
    assert 1.25 < ratio.max() < 1.4
    assert abs(area.mean() - 0.54) < 0.05


def test_lighting_is_the_papers_formula():
    image = np.full((3, 3, 3), 128, np.float32)
    perturbations = np.stack(
        [
            np.asarray(transforms.pca_lighting(key, image, std=0.1))[0, 0] - 128
            for key in jax.random.split(jax.random.key(0), 500)
        ]
    )
    vectors, values = np.array(transforms._PCA_VECTORS), np.array(transforms._PCA_VALUES)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=2e-3)
    deviations = (perturbations / 255 @ vectors).std(0)
    np.testing.assert_allclose(deviations, 0.1 * values, rtol=0.12)


@pytest.mark.parametrize('name', ['randaugment', 'trivialaugment'])
def test_policies_use_every_operation(name, monkeypatch):
    seen = []
    record = lambda image, operation, strength: (  # noqa: E731
        seen.append((int(operation), float(strength))),
        image,
    )[1]
    monkeypatch.setattr(image_ops, 'apply_operation', record)
    options = {'randaugment': {'layers': 2, 'magnitude': 9.0}, 'trivialaugment': {}}[name]
    for key in jax.random.split(jax.random.key(0), 150):
        getattr(transforms, name)(key, jnp.zeros((32, 32, 3)), **options)
    assert len(seen) == 150 * (2 if name == 'randaugment' else 1)
    assert {operation for operation, _ in seen} == set(range(len(image_ops.OPERATIONS)))
    by_name = {n: [s for o, s in seen if o == i] for i, n in enumerate(image_ops.OPERATIONS)}
    assert min(by_name['rotate']) < 0 < max(by_name['rotate'])
    if name == 'randaugment':
        assert {round(abs(s), 4) for s in by_name['rotate']} == {9.0}
        assert {round(abs(s), 4) for s in by_name['shear_x']} == {0.09}
        assert {s for s in by_name['posterize']} == {7.0}


MIXES = [
    {'augment__mixup': 0.2},
    {'augment__cutmix': 1.0},
    {'augment__mixup': 0.8, 'augment__cutmix': 1.0},
    {},
]


def _mixed(config, batch, devices=1, seed=0):
    mesh = Mesh(np.array(jax.local_devices()[:devices]), (AXIS,))
    mix = make_mix(config, AXIS)
    keys = jax.random.split(jax.random.key(seed), batch)
    images = np.stack([_photograph(i) for i in range(batch)]).astype(np.float32)
    labels = np.arange(batch, dtype=np.int32) % 10
    part = PartitionSpec(None, AXIS)
    run = jax.shard_map(mix, mesh=mesh, in_specs=part, out_specs=part, check_vma=False)
    mixed = jax.jit(run)(keys[None], images[None], labels[None])
    return images, labels, jax.tree.map(lambda x: np.asarray(x)[0], mixed)


@pytest.mark.parametrize('options', MIXES, ids=str)
@pytest.mark.parametrize('batch', [1, 7, 8])
def test_mixed_labels_are_distributions_that_fit_the_pixels(options, batch):
    images, labels, mixed = _mixed(_config(**options), batch)
    assert mixed.targets.shape == (batch, 10)
    np.testing.assert_allclose(mixed.targets.sum(-1), 1, atol=1e-6)
    assert (mixed.targets >= 0).all()
    partner_images, partner_labels = np.roll(images, -1, 0), np.roll(labels, -1)
    for row in range(batch):
        share = mixed.targets[row, labels[row]]
        assert set(np.nonzero(mixed.targets[row])[0]) <= {labels[row], partner_labels[row]}
        # The same share, computed from the pixels.
        difference = images[row] - partner_images[row]
        solid = np.abs(difference) > 4
        if batch > 1:
            weights = (mixed.images[row] - partner_images[row])[solid] / difference[solid]
            assert abs(weights.mean() - share) < 0.15
            larger = labels[row] if share >= 0.5 else partner_labels[row]
            assert mixed.labels[row] == larger
    if not options:
        np.testing.assert_array_equal(mixed.images, images)


def test_mixup_shares_follow_the_beta_distribution():
    _, labels, mixed = _mixed(_config(augment__mixup=0.4), 2000)
    shares = mixed.targets[np.arange(2000), labels]
    expected = np.random.default_rng(0).beta(0.4, 0.4, 100_000)
    points = [0.05, 0.25, 0.5, 0.75, 0.95]
    for point in points:
        assert abs((shares <= point).mean() - (expected <= point).mean()) < 0.04


@pytest.mark.parametrize('options', MIXES[:3], ids=str)
def test_partners_are_the_same_on_every_layout(options):
    config = _config(**options, augment__repeats=2)
    _, _, one = _mixed(config, 8)
    for devices in (2, 4):
        _, _, several = _mixed(config, 8, devices=devices)
        for got, expected in zip(several, one, strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-3)


def test_repeated_images_stand_side_by_side_and_are_not_mixed_with_themselves():
    labels = np.arange(64, dtype=np.int32)
    split = ArraySplit(np.zeros((64, 8, 8, 3), np.uint8), labels)
    config = _config(batch_size=16, augment__repeats=4, num_epochs=1)
    batches = list(make_train_batches(config, split)(0))
    assert len(batches) == 4  # As many steps as without.
    seen = []
    for batch in batches:
        groups = batch['label'].reshape(4, 4)
        assert (groups == groups[:, :1]).all()
        seen += groups[:, 0].tolist()
        assert (np.roll(batch['label'], -4) != batch['label']).all()
    assert len(set(seen)) == 16


@pytest.mark.parametrize(
    ('overrides', 'says'),
    [
        ({'augment__crop_on': 'device'}, 'belongs to config.augment.crop=random_resized'),
        ({'augment__repeats': 3}, 'does not divide'),
        ({'augment__color_jitter': (0.1, 0.1)}, 'four numbers'),
        ({'augment__color_jitter': (0.1, 0.1, 0.1, 0.7)}, 'four numbers'),
        ({'augment__policy': 'randaugmnet'}, 'did you mean randaugment'),
    ],
)
def test_options_that_contradict_are_refused(overrides, says):
    with pytest.raises(UserError, match=says):
        validate(_config(**overrides))


@pytest.mark.parametrize('options', [{}, {'augment__mixup': 0.4, 'augment__cutmix': 1.0}], ids=str)
def test_picture_of_what_training_sees(tmp_path, options):
    from flaxcls.explaining.training_images import augmented_images, draw_training_images
    from flaxcls.training.setup import build_setup

    setup = build_setup(_config(augment__flip=True, data__image_size=16, **options))
    evaluated, mixed, _ = augmented_images(setup, epochs=5)
    assert evaluated.shape == (8, 16, 16, 3)
    assert mixed.images.shape == (5, 8, 16, 16, 3)
    np.testing.assert_allclose(mixed.targets.sum(-1), 1, atol=1e-5)
    if not options:  # A column is one image, flipped or not.
        for image, variants in zip(evaluated, mixed.images.swapaxes(0, 1), strict=True):
            for variant in variants:
                assert min(np.abs(variant - i).max() for i in (image, image[:, ::-1])) < 1
    draw_training_images(setup, 2, tmp_path / 'a folder/seen.png')
    with Image.open(tmp_path / 'a folder/seen.png') as picture:
        assert picture.width > 1000
