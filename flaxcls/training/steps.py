"""The training step and the evaluation step: pure functions of (state, batch) on one device.

They are written for a device's share of the batch, with the named axis AXIS over the devices;
`flaxcls.training.parallel` lays out the batch and runs them.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

from flaxcls.augment.mixup import Mixed
from flaxcls.ops.fusion import fuse
from flaxcls.ops.remat import remat as with_remat
from flaxcls.training.ema import update_ema
from flaxcls.training.freezing import merge_frozen, split_frozen
from flaxcls.training.losses import Loss, softmax_cross_entropy
from flaxcls.training.metrics import Sums, loss_and_metrics
from flaxcls.training.parallel import AXIS
from flaxcls.training.state import TrainState

Batch = dict[str, jax.Array]


Variables = dict[str, Any]


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    augment: Callable[[jax.Array, jax.Array], jax.Array],
    mix: Callable[[jax.Array, jax.Array, jax.Array], Mixed],
    normalize: Callable[[jax.Array], jax.Array],
    loss: Loss,
    seed: int,
    top_k: int,
    label_smoothing: float = 0.0,
    frozen: Sequence[str] = (),
    ema_decay: float = 0.0,
    remat: str = 'none',
) -> Callable[[TrainState, Batch], tuple[TrainState, Sums]]:
    """Returns train_step(state, batch) -> (state after one update, sums over the global batch).

    The batch is {'image': uint8 [P, B, S, S, 3], 'label': int32 [P, B]}: a device's B examples of
    each of P microbatches, whose gradients are computed one after another and averaged. BatchNorm's
    running statistics are averaged likewise, over all groups of all microbatches, and move once a
    step.

    Every random draw belongs to an example: its key is folded from the seed, the step and the
    example's position in the global batch, so that it does not depend on the layout of devices.

    Args:
      model: the network, its BatchNorm with the axis AXIS.
      optimizer: of the parameters that are trained.
      augment, mix, normalize: see `flaxcls.augment`.
      loss: see `losses`.
      seed: of all random draws.
      top_k: k of the top-k accuracy.
      label_smoothing: share of each label spread evenly over all classes.
      frozen: patterns of the layers that are not trained.
      ema_decay: see `update_ema`.
      remat: see `flaxcls.ops.remat`.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        keys = _example_keys(seed, state.step, batch['label'].shape)
        images = jax.vmap(augment)(keys.augment, batch['image'].astype(jnp.float32))
        images, targets, labels = mix(keys.mix, images, batch['label'])
        images = normalize(images)
        targets = optax.smooth_labels(targets, label_smoothing)
        trained, frozen_params = split_frozen(state.params, frozen)

        def loss_fn(trained: Any, microbatch: Any) -> tuple[jax.Array, tuple[Any, Sums]]:
            images, targets, labels, example_keys = microbatch
            logits, updates = model.apply(
                {
                    'params': merge_frozen(trained, frozen_params),
                    'batch_stats': state.batch_stats,
                },
                images,
                train=True,
                example_keys=example_keys,
                mutable=['batch_stats'],
            )
            losses = loss(logits, targets)
            sums = loss_and_metrics(logits, labels, losses, top_k=top_k)
            # Shares are equal, so the mean of their means is the batch's.
            return losses.mean(), (updates.get('batch_stats', {}), sums)

        gradients_of = jax.grad(with_remat(fuse(loss_fn), remat), has_aux=True)
        microbatches = (images, targets, labels, keys.model)
        gradients, (batch_stats, sums) = _sum_over_microbatches(
            lambda microbatch: gradients_of(trained, microbatch), microbatches
        )
        # Even the mean of equal numbers may be another in the last bit: what is frozen stays out.
        batch_stats, _ = split_frozen(batch_stats, frozen)
        _, frozen_stats = split_frozen(state.batch_stats, frozen)
        gradients, batch_stats, sums = _reduce(gradients, batch_stats, sums, len(labels))
        batch_stats = merge_frozen(batch_stats, frozen_stats)
        updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
        params = merge_frozen(optax.apply_updates(trained, updates), frozen_params)
        averages = {'params': params, 'batch_stats': batch_stats}
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=update_ema(state.ema, averages, state.step, ema_decay),
        )
        return new_state, sums

    return train_step


def _sum_over_microbatches(compute: Callable[[Any], Any], microbatches: Any) -> Any:
    """Returns the sum of `compute` over the microbatches (first axis), one after another."""
    count = len(jax.tree.leaves(microbatches)[0])
    first = jax.tree.map(lambda x: x[0], microbatches)
    if count == 1:
        return compute(first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(compute, first))
    add = lambda total, microbatch: (jax.tree.map(jnp.add, total, compute(microbatch)), None)  # noqa: E731
    loop = lambda microbatches, unroll: lax.scan(add, zeros, microbatches, unroll=unroll)[0]  # noqa: E731
    # On CPU, convolutions within a loop are several times slower.
    return lax.platform_dependent(
        microbatches,
        cpu=functools.partial(loop, unroll=True),
        default=functools.partial(loop, unroll=False),
    )


def _reduce(
    gradients: Any, batch_stats: Any, sums: Sums, microbatches: int
) -> tuple[Any, Any, Sums]:
    """Returns the means of gradients and statistics over microbatches and devices, and the sums.

    This is the one reduction of a step over the devices, apart from BatchNorm's groups where these
    span devices. XLA joins up to 256 arrays of one type, so the many small ones travel as one
    vector, and counts as floats, which are exact up to 2**24.
    """
    shares = microbatches * lax.axis_size(AXIS)
    if lax.axis_size(AXIS) > 1:
        leaves, structure = jax.tree.flatten((gradients, batch_stats, sums))
        small, restore = ravel_pytree([leaf for leaf in leaves if leaf.ndim < 2])
        small, large = lax.psum((small, [leaf for leaf in leaves if leaf.ndim >= 2]), AXIS)
        small, large = iter(restore(small)), iter(large)
        leaves = [next(small if leaf.ndim < 2 else large) for leaf in leaves]
        gradients, batch_stats, sums = jax.tree.unflatten(structure, leaves)
    gradients, batch_stats = jax.tree.map(lambda x: x / shares, (gradients, batch_stats))
    return gradients, batch_stats, sums


def make_eval_step(
    classify: Callable[[Variables, jax.Array], jax.Array], *, top_k: int
) -> Callable[[Variables, Batch], Sums]:
    """Returns eval_step(variables, batch) -> sums over the unmasked examples of the global batch.

    The batch is {'image': uint8 [B, S, S, 3], 'label': int32 [B], 'mask': bool [B]}, a device's
    share. The loss is the cross-entropy with the labels, whatever training's is.

    Args:
      classify: from `make_classify`.
      top_k: k of the top-k accuracy.
    """

    def eval_step(variables: Variables, batch: Batch) -> Sums:
        logits, labels = classify(variables, batch['image']), batch['label']
        losses = softmax_cross_entropy(logits, jax.nn.one_hot(labels, logits.shape[-1]))
        sums = loss_and_metrics(logits, labels, losses, mask=batch['mask'], top_k=top_k)
        return lax.psum(sums, AXIS)

    return eval_step


def make_classify(
    model: nn.Module,
    normalize: Callable[[jax.Array], jax.Array],
    tta_crops_of: Callable[[jax.Array], jax.Array] | None = None,
) -> Callable[[Variables, jax.Array], jax.Array]:
    """Returns (variables, images uint8 [B, S, S, 3] of an evaluation batch) -> logits [B, C].

    Running statistics are used and left alone. Logits are float32; variables are
    `TrainState.eval_variables`.

    Args:
      model: Linen module whose output is logits [B, C].
      normalize: see `flaxcls.augment.transforms`.
      tta_crops_of: images -> their TTA crops, of which the logits are the logarithms of the
        averaged probabilities; None: the images are taken as they are.
    """

    @fuse
    def classify(variables: Variables, images: jax.Array) -> jax.Array:
        return model.apply(variables, normalize(images), train=False)

    def classify_crops(variables: Variables, images: jax.Array) -> jax.Array:
        crops = tta_crops_of(images)
        # One crop at a time, so that evaluation takes no more memory than with one.
        log_probabilities = lax.map(lambda x: jax.nn.log_softmax(classify(variables, x)), crops)
        return jax.nn.logsumexp(log_probabilities, axis=0) - jnp.log(len(crops))

    return classify if tta_crops_of is None else classify_crops


class _ExampleKeys(NamedTuple):
    """Keys [P, B] of a device's examples, by what they are for."""

    augment: jax.Array
    mix: jax.Array
    model: jax.Array


def _example_keys(seed: int, step: jax.Array, shape: tuple[int, int]) -> _ExampleKeys:
    microbatches, local = shape
    devices, device = lax.axis_size(AXIS), lax.axis_index(AXIS)
    # The order of parallel.Layout: microbatches, then devices, then examples.
    positions = (jnp.arange(microbatches)[:, None] * devices + device) * local + jnp.arange(local)
    step_key = jax.random.fold_in(jax.random.key(seed), step)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, positions.ravel())
    keys = jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(keys)
    return _ExampleKeys(*keys.reshape(3, microbatches, local))
