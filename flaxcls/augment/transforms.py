"""Augmentation on the device: pure functions of (key, image), for one example each.

Images are float32 [H, W, 3] in 0..255. The training step maps them over the batch with one key
per example, so that an example is changed alike on any layout of devices. Every operation draws
from a stream of its own: switching one on leaves the draws of the others as they were.
"""

import functools
import zlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from flaxcls.augment import image_ops
from flaxcls.augment.image_ops import OPERATIONS
from flaxcls.config.registry import Registry

Transform = Callable[[jax.Array, jax.Array], jax.Array]  # (key, image) -> image.

_BINS = 31  # Magnitudes of the policies run from 0 to 30.
# Principal components of ImageNet's RGB values in 0..1: columns, and their variances, with
# which the paper multiplies them.
_PCA_VECTORS = (
    (-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203),
)  # fmt: skip
_PCA_VALUES = (0.2175, 0.0188, 0.0045)


# Name -> (options of config.augment, and `fill`, the mean colour in 0..255, as keyword-only
# arguments) -> Transform, or None where it is switched off. They are applied in this order.
# `stream`: which stream of its example's key it draws from; of others it follows from the name.
AUGMENTATIONS: Registry = Registry('augment.')


def make_augment(
    mean: Sequence[float], *, extensions: Collection[str] = (), **options: Any
) -> Callable[..., jax.Array]:
    """Returns (keys [B], images [B, H, W, 3]) -> images.

    What is erased gets the colour `mean`, RGB in 0..1. Not among them are random crops cut on the
    host, as the file is decoded, and what mixes examples (`flaxcls.augment.mixup`).

    Args:
      mean: of red, green and blue.
      extensions: names of those of the config; what others have registered is left out.
      **options: as in config.augment; the defaults of those that are missing.
    """
    values = options | {'fill': 255 * jnp.array(mean, jnp.float32)}
    chain = []  # What is switched on.
    for name in AUGMENTATIONS.of_config(extensions):
        transform = AUGMENTATIONS.bind(name, values)()
        if transform is not None:
            facts = AUGMENTATIONS.facts[name]
            chain.append((facts.get('stream', zlib.crc32(name.encode())), transform))

    def augment(key: jax.Array, image: jax.Array) -> jax.Array:
        for stream, transform in chain:
            image = transform(jax.random.fold_in(key, stream), image)
        return image

    return jax.vmap(augment)


@AUGMENTATIONS.register('crop', stream=0)
def _crop(*, crop: str, crop_on: str, pad: int, min_area: float) -> Transform | None:
    if crop == 'pad':
        return functools.partial(pad_and_crop, pad=pad)
    if crop == 'random_resized' and crop_on == 'device':
        return functools.partial(random_resized_crop, min_area=min_area)
    return None


@AUGMENTATIONS.register('flip', stream=1)
def _flip(*, flip: bool) -> Transform | None:
    return flip_left_right if flip else None


@AUGMENTATIONS.register('policy', stream=2)
def _policy(
    *, policy: str, randaugment_layers: int, randaugment_magnitude: float
) -> Transform | None:
    if policy == 'randaugment':
        strength = {'layers': randaugment_layers, 'magnitude': randaugment_magnitude}
        return functools.partial(randaugment, **strength)
    return trivialaugment if policy == 'trivialaugment' else None


@AUGMENTATIONS.register('color_jitter', stream=3)
def _color_jitter(*, color_jitter: Sequence[float]) -> Transform | None:
    strengths = tuple(color_jitter)
    return functools.partial(jitter_colors, strengths=strengths) if strengths else None


@AUGMENTATIONS.register('lighting', stream=4)
def _lighting(*, lighting: float) -> Transform | None:
    return functools.partial(pca_lighting, std=lighting) if lighting else None


@AUGMENTATIONS.register('erase', stream=5)
def _erase(*, erase: float, fill: jax.Array) -> Transform | None:
    return functools.partial(random_erase, probability=erase, fill=fill) if erase else None


@AUGMENTATIONS.register('cutout', stream=6)
def _cutout(*, cutout: int, fill: jax.Array) -> Transform | None:
    return functools.partial(cut_out, side=cutout, fill=fill) if cutout else None


def pad_and_crop(key: jax.Array, image: jax.Array, *, pad: int) -> jax.Array:
    """Pads `pad` zeros on every side and cuts the old size at random (arXiv:1409.5185)."""
    padded = jnp.pad(image, [(pad, pad), (pad, pad), (0, 0)])
    top, left = jax.random.randint(key, (2,), 0, 2 * pad + 1)
    return lax.dynamic_slice(padded, (top, left, 0), image.shape)


def random_resized_crop(key: jax.Array, image: jax.Array, *, min_area: float) -> jax.Array:
    """Cuts a random part and resizes it to the old size (arXiv:1409.4842, section 6).

    The part covers from `min_area` to all of the image, its aspect ratio lies between 3/4 and 4/3,
    as far as the image allows. Bilinear, antialiased.
    """
    sides = jnp.array(image.shape[:2], jnp.float32)
    area_key, ratio_key, place_key = jax.random.split(key, 3)
    area = sides.prod() * jax.random.uniform(area_key, minval=min_area)
    ratio = jnp.exp(jax.random.uniform(ratio_key, minval=jnp.log(3 / 4), maxval=jnp.log(4 / 3)))
    part = jnp.minimum(jnp.sqrt(jnp.stack([area / ratio, area * ratio])), sides)
    first = jax.random.uniform(place_key, (2,)) * (sides - part)
    scale = sides / part
    return jnp.clip(
        jax.image.scale_and_translate(image, image.shape, (0, 1), scale, -first * scale, 'linear'),
        0,
        255,
    )


def flip_left_right(key: jax.Array, image: jax.Array) -> jax.Array:
    """Mirrors the image with probability 1/2."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def jitter_colors(key: jax.Array, image: jax.Array, *, strengths: tuple[float, ...]) -> jax.Array:
    """Changes brightness, contrast, saturation and hue, in this order.

    Args:
      key: PRNG key, different for each example.
      image: float32 [H, W, 3] in 0..255.
      strengths: of the four. The first three factors are drawn from [max(0, 1 - s), 1 + s], the
        turn of the hue from [-s, s] with s up to 0.5.
    """
    keys = jax.random.split(key, 4)
    factors = [
        jax.random.uniform(k, minval=max(0.0, 1 - s), maxval=1 + s)
        for k, s in zip(keys, strengths[:3], strict=False)
    ]
    image = image_ops.blend(jnp.zeros_like(image), image, factors[0])
    image = image_ops.blend(image_ops.grey(image).mean(), image, factors[1])
    image = image_ops.blend(image_ops.grey(image), image, factors[2])
    turn = jax.random.uniform(keys[3], minval=-strengths[3], maxval=strengths[3])
    return image_ops.shift_hue(image, turn) if strengths[3] else image


def pca_lighting(key: jax.Array, image: jax.Array, *, std: float) -> jax.Array:
    """Adds a random multiple of each principal component (Krizhevsky et al. 2012, section 4.1).

    The multiples are normal with deviation `std`, 0.1 in the paper, times the component's own.
    """
    amounts = std * jax.random.normal(key, (3,)) * jnp.array(_PCA_VALUES)
    return jnp.clip(image + 255 * jnp.array(_PCA_VECTORS) @ amounts, 0, 255)


def random_erase(
    key: jax.Array, image: jax.Array, *, probability: float, fill: jax.Array
) -> jax.Array:
    """Fills a random rectangle with a probability (arXiv:1708.04896, algorithm 1).

    It covers 2 to 33 % of the image, with an aspect ratio from 0.3 to 1 / 0.3.
    """
    height, width = image.shape[:2]
    happens_key, area_key, ratio_key, place_key = jax.random.split(key, 4)
    area = height * width * jax.random.uniform(area_key, minval=0.02, maxval=0.33)
    ratio = jnp.exp(jax.random.uniform(ratio_key, minval=jnp.log(0.3), maxval=-jnp.log(0.3)))
    sides = jnp.minimum(
        jnp.sqrt(jnp.stack([area * ratio, area / ratio])), jnp.array([height, width])
    )
    first = jax.random.uniform(place_key, (2,)) * (jnp.array([height, width]) - sides)
    inside = rectangle(image.shape, first, first + sides)
    return jnp.where(inside & jax.random.bernoulli(happens_key, probability), fill, image)


def cut_out(key: jax.Array, image: jax.Array, *, side: int, fill: jax.Array) -> jax.Array:
    """Fills a square around a random pixel, part of which may lie outside (arXiv:1708.04552)."""
    center = jax.random.randint(key, (2,), 0, jnp.array(image.shape[:2]))
    first = center - side // 2
    return jnp.where(rectangle(image.shape, first, first + side), fill, image)


def rectangle(shape: tuple[int, ...], first: jax.Array, last: jax.Array) -> jax.Array:
    """Returns bool [H, W, 1]: which (row, column) lie from `first` to before `last`."""
    rows, columns = jnp.mgrid[: shape[0], : shape[1]]
    inside = (rows >= first[0]) & (rows < last[0]) & (columns >= first[1]) & (columns < last[1])
    return inside[..., None]


def randaugment(key: jax.Array, image: jax.Array, *, layers: int, magnitude: float) -> jax.Array:
    """Applies `layers` random operations at `magnitude`, 0 to 30 (arXiv:1909.13719)."""
    for layer_key in jax.random.split(key, layers):
        operation_key, sign_key = jax.random.split(layer_key)
        operation = jax.random.randint(operation_key, (), 0, len(OPERATIONS))
        strengths = _strengths(image.shape, magnitude, sign_key, wide=False)
        image = image_ops.apply_operation(image, operation, strengths[operation])
    return image


def trivialaugment(key: jax.Array, image: jax.Array) -> jax.Array:
    """Applies one random operation at a random magnitude: TrivialAugmentWide (arXiv:2103.10158)."""
    operation_key, magnitude_key, sign_key = jax.random.split(key, 3)
    operation = jax.random.randint(operation_key, (), 0, len(OPERATIONS))
    magnitude = jax.random.randint(magnitude_key, (), 0, _BINS)
    strengths = _strengths(image.shape, magnitude, sign_key, wide=True)
    return image_ops.apply_operation(image, operation, strengths[operation])


def _strengths(
    shape: tuple[int, ...], magnitude: jax.Array | float, sign_key: jax.Array, *, wide: bool
) -> jax.Array:
    """Returns float32 [len(OPERATIONS)]: the strength of each at a magnitude of 0 to 30.

    The ranges are torchvision's, of its RandAugment and TrivialAugmentWide. Those of geometry and
    of blends go both ways.
    """
    share = jnp.asarray(magnitude, jnp.float32) / (_BINS - 1)
    sign = jnp.where(jax.random.bernoulli(sign_key), 1.0, -1.0)
    shear, turn, factor, bits = (0.99, 135.0, 0.99, 6) if wide else (0.3, 30.0, 0.9, 4)
    down, across = (32.0, 32.0) if wide else (150 / 331 * shape[0], 150 / 331 * shape[1])
    largest = {
        'shear_x': shear, 'shear_y': shear, 'translate_x': across, 'translate_y': down,
        'rotate': turn, 'brightness': factor, 'color': factor, 'contrast': factor,
        'sharpness': factor,
    }  # fmt: skip
    special = {'posterize': 8 - jnp.round(share * bits), 'solarize': 255 * (1 - share)}
    return jnp.stack(
        [
            special[name] if name in special else sign * share * largest.get(name, 0.0)
            for name in OPERATIONS
        ]
    )


def make_normalize(mean: Sequence[float], std: Sequence[float]) -> Callable[[jax.Array], jax.Array]:
    """Returns images in 0..255 -> (images / 255 - mean) / std, float32 or wider.

    Args:
      mean, std: of red, green and blue in 0..1.
    """
    mean, std = (255 * jnp.array(values, jnp.float32) for values in (mean, std))
    return lambda images: (images.astype(jnp.promote_types(images.dtype, mean.dtype)) - mean) / std
