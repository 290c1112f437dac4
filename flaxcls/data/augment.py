"""Augmentation on the device: pure functions of (key, image), for one example each.

Images are float32 [H, W, 3] in 0..255. The training step maps them over the batch with one key
per example, so that an example is changed alike on any layout of devices.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from ml_collections import ConfigDict


def pad_and_crop(key: jax.Array, image: jax.Array, *, pad: int) -> jax.Array:
    """Pads `pad` zeros on every side and cuts the old size at random (arXiv:1409.5185)."""
    padded = jnp.pad(image, [(pad, pad), (pad, pad), (0, 0)])
    top, left = jax.random.randint(key, (2,), 0, 2 * pad + 1)
    return lax.dynamic_slice(padded, (top, left, 0), image.shape)


def flip_left_right(key: jax.Array, image: jax.Array) -> jax.Array:
    """Mirrors the image with probability 1/2."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def ten_crops(images: jax.Array, size: int) -> jax.Array:
    """Returns [10, B, size, size, 3] of [B, H, W, 3]: four corners, the center, and all mirrored.

    The test of Krizhevsky et al., NIPS 2012, section 4.1.
    """
    bottom, right = images.shape[1] - size, images.shape[2] - size
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
    crops = [images[:, top : top + size, left : left + size] for top, left in corners]
    return jnp.stack(crops + [crop[:, :, ::-1] for crop in crops])


def make_augment(config: ConfigDict) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns (keys [B], images [B, H, W, 3]) -> images, as `config.augment` says.

    Random resized crops are not among them: they are cut on the host, as the file is decoded.
    """

    def augment(key: jax.Array, image: jax.Array) -> jax.Array:
        crop_key, flip_key = jax.random.split(key)
        if config.augment.crop == 'pad':
            image = pad_and_crop(crop_key, image, pad=config.augment.pad)
        if config.augment.flip:
            image = flip_left_right(flip_key, image)
        return image

    return jax.vmap(augment)


def make_normalize(config: ConfigDict) -> Callable[[jax.Array], jax.Array]:
    """Returns images in 0..255 -> (images / 255 - mean) / std, float32."""
    mean = 255 * jnp.array(config.data.mean, jnp.float32)
    std = 255 * jnp.array(config.data.std, jnp.float32)
    return lambda images: (images.astype(jnp.float32) - mean) / std
