"""Mixing examples: mixup and cutmix, whose labels are distributions over the classes.

Both put a weight between 0 and 1 on every pixel of an example, and the rest on its partner's; the
label takes the mean of these weights. The partner is the next example of the global batch, whose
order is random already. Of a device's partners, all but the last lie on the device itself.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flaxcls.augment.transforms import rectangle


class Mixed(NamedTuple):
    images: jax.Array  # [P, B, H, W, 3].
    targets: jax.Array  # float [P, B, C], rows that sum to 1.
    labels: jax.Array  # int32 [P, B], the one with the larger share.


def make_mix(
    num_classes: int,
    axis_name: str,
    *,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    repeats: int = 1,
) -> Callable[[jax.Array, jax.Array, jax.Array], Mixed]:
    """Returns (keys [P, B], images [P, B, H, W, 3], labels int32 [P, B]) -> Mixed.

    These are a device's B examples of each of P microbatches; see `next_in_batch` for their order.
    With both mixup and cutmix, each example takes one of them with probability 1/2. With neither,
    the images stay and the targets are one-hot.

    Args:
      num_classes: C of the targets.
      axis_name: the mapped axis over which the batch is split.
      mixup, cutmix: alpha of their Beta distributions; 0: switched off.
      repeats: consecutive rows in which an image stands; none is mixed with itself.
    """

    def weigh(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        choice_key, mixup_key, cutmix_key = jax.random.split(key, 3)
        if not cutmix:
            return mixup_weights(mixup_key, shape, mixup)
        weights = cutmix_weights(cutmix_key, shape, cutmix)
        if not mixup:
            return weights
        other = mixup_weights(mixup_key, shape, mixup)
        return jnp.where(jax.random.bernoulli(choice_key), weights, other)

    def mix(keys: jax.Array, images: jax.Array, labels: jax.Array) -> Mixed:
        targets = jax.nn.one_hot(labels, num_classes)
        if not (mixup or cutmix):
            return Mixed(images, targets, labels)
        weigh_all = jax.vmap(jax.vmap(weigh, (0, None)), (0, None))
        weights = weigh_all(keys, images.shape[2:])
        partners, partner_labels = (next_in_batch(x, repeats, axis_name) for x in (images, labels))
        share = weights.mean((2, 3))
        partner_targets = jax.nn.one_hot(partner_labels, num_classes)
        return Mixed(
            weights * images + (1 - weights) * partners,
            share * targets + (1 - share) * partner_targets,
            jnp.where(share[..., 0] >= 0.5, labels, partner_labels),
        )

    return mix


def mixup_weights(key: jax.Array, shape: tuple[int, ...], alpha: float) -> jax.Array:
    """Returns [H, W, 1], the same everywhere, drawn from Beta(alpha, alpha) (arXiv:1710.09412)."""
    return jnp.full((*shape[:2], 1), jax.random.beta(key, alpha, alpha))


def cutmix_weights(key: jax.Array, shape: tuple[int, ...], alpha: float) -> jax.Array:
    """Returns [H, W, 1], 0 within a box and 1 outside (arXiv:1905.04899, section 3.1).

    The box has the image's aspect ratio and a share of its area drawn from Beta(alpha, alpha); its
    center is anywhere, and what lies outside of the image is cut off.
    """
    area_key, center_key = jax.random.split(key)
    sides = jnp.array(shape[:2]) * jnp.sqrt(jax.random.beta(area_key, alpha, alpha))
    center = jax.random.uniform(center_key, (2,)) * jnp.array(shape[:2])
    return 1.0 - rectangle(shape, jnp.round(center - sides / 2), jnp.round(center + sides / 2))


def next_in_batch(x: jax.Array, shift: int, axis_name: str) -> jax.Array:
    """Returns, in the place of each row of the global batch, the row `shift` further, cyclically.

    Args:
      x: [P, B, ...], a device's share: the batch is P microbatches, each of B rows of every device.
      shift: rows, at most B.
      axis_name: the mapped axis over which the batch is split.
    """
    devices = lax.axis_size(axis_name)
    from_next = [((device + 1) % devices, device) for device in range(devices)]
    after = lax.ppermute(x[:, :shift], axis_name, from_next)
    # After the last device comes the first, with the next microbatch.
    is_last = lax.axis_index(axis_name) == devices - 1
    after = jnp.where(is_last, jnp.roll(after, -1, axis=0), after)
    return jnp.concatenate([x[:, shift:], after], axis=1)
