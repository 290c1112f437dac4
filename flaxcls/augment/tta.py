"""Crops at test time (TTA), whose predictions are averaged."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp


def make_tta_crops(kind: str, size: int) -> Callable[[jax.Array], jax.Array]:
    """Returns images [B, H, W, 3] of evaluation -> their TTA crops [V, B, S, S, 3].

    Args:
      kind: center, flip (also mirrored) or ten, see `ten_crops`.
      size: S; H and W are S, or with ten crops the sides of the image that these are cut from.
    """
    return {
        'center': lambda images: images[None],
        'flip': lambda images: jnp.stack([images, images[:, :, ::-1]]),
        'ten': functools.partial(ten_crops, size=size),
    }[kind]


def ten_crops(images: jax.Array, size: int) -> jax.Array:
    """Returns [10, B, size, size, 3] of [B, H, W, 3]: four corners, the center, and all mirrored.

    The test of Krizhevsky et al., NIPS 2012, section 4.1.
    """
    bottom, right = images.shape[1] - size, images.shape[2] - size
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
    crops = [images[:, top : top + size, left : left + size] for top, left in corners]
    return jnp.stack(crops + [crop[:, :, ::-1] for crop in crops])
