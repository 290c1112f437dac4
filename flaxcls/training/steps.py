"""The training step and the evaluation step: pure functions of (state, batch) on one device.

They are written for a device's share of the batch, with the named axis AXIS over the devices;
`flaxcls.training.parallel` lays out the batch and runs them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from ml_collections import ConfigDict

from flaxcls.augment.mixup import make_mix
from flaxcls.augment.transforms import make_augment, make_normalize, make_tta_crops
from flaxcls.models.from_config import frozen_patterns
from flaxcls.ops.remat import remat
from flaxcls.training.freezing import merge_frozen, split_frozen
from flaxcls.training.metrics import Sums, loss_and_metrics
from flaxcls.training.optimizers import update_ema
from flaxcls.training.state import AXIS, TrainState

Batch = dict[str, jax.Array]


Variables = dict[str, Any]


def make_train_step(
    config: ConfigDict, model: nn.Module, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Batch], tuple[TrainState, Sums]]:
    """Returns train_step(state, batch) -> (state after one update, sums over the global batch).

    The batch is {'image': uint8 [P, B, S, S, 3], 'label': int32 [P, B]}: a device's B examples of
    each of P parts, whose gradients are computed one after another and averaged. BatchNorm's
    running statistics are averaged likewise, over all groups of all parts, and move once a step.

    Every random draw belongs to an example: its key is folded from the seed, the step and the
    example's position in the global batch, so that it does not depend on the layout of devices.
    """
    augment, normalize = make_augment(config), make_normalize(config)
    mix = make_mix(config, AXIS)
    patterns = frozen_patterns(config)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        keys = _example_keys(config.seed, state.step, batch['label'].shape)
        images = jax.vmap(augment)(keys.augment, batch['image'].astype(jnp.float32))
        images, targets, labels = mix(keys.mix, images, batch['label'])
        images = normalize(images)
        targets = optax.smooth_labels(targets, config.label_smoothing)
        trained, frozen = split_frozen(state.params, patterns)

        def loss_fn(trained: Any, microbatch: Any) -> tuple[jax.Array, tuple[Any, Sums]]:
            images, targets, labels, example_keys = microbatch
            params = merge_frozen(trained, frozen)
            logits, updates = model.apply(
                {'params': params, 'batch_stats': state.batch_stats},
                images,
                train=True,
                example_keys=example_keys,
                mutable=['batch_stats'],
            )
            everyone = jnp.ones_like(labels, bool)
            sums = loss_and_metrics(
                logits, labels, everyone, top_k=config.top_k, targets=targets, loss=config.loss
            )
            # Shares are equal, so the mean of their means is the batch's.
            loss = sums['loss_sum'] / len(labels)
            return loss, (updates.get('batch_stats', {}), sums)

        gradients_of = jax.grad(remat(loss_fn, config.model.remat), has_aux=True)
        microbatches = (images, targets, labels, keys.model)
        gradients, (batch_stats, sums) = _sum_over_microbatches(
            lambda microbatch: gradients_of(trained, microbatch), microbatches
        )
        # Even the mean of equal numbers may be another in the last bit: what is frozen stays out.
        batch_stats, _ = split_frozen(batch_stats, patterns)
        _, frozen_stats = split_frozen(state.batch_stats, patterns)
        gradients, batch_stats, sums = _reduce(gradients, batch_stats, sums, len(labels))
        batch_stats = merge_frozen(batch_stats, frozen_stats)
        updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
        params = merge_frozen(optax.apply_updates(trained, updates), frozen)
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=update_ema(
                state.ema, {'params': params, 'batch_stats': batch_stats}, state.step, config
            ),
        )
        return new_state, sums

    return train_step


def _sum_over_microbatches(compute: Callable[[Any], Any], microbatches: Any) -> Any:
    """Returns the sum of `compute(part)` over the first axis of `parts`, one after another."""
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
    """Returns the means of gradients and statistics over parts and devices, and the sums.

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


def make_eval_step(config: ConfigDict, model: nn.Module) -> Callable[[TrainState, Batch], Sums]:
    """Returns eval_step(state, batch) -> sums over the unmasked examples of the global batch.

    The batch is {'image': uint8 [B, S, S, 3], 'label': int32 [B], 'mask': bool [B]}, a device's
    share. Running statistics are used and left alone; the loss is the cross-entropy with the
    labels, whatever config.loss and config.label_smoothing are.
    """
    classify = make_classify(config, model)

    def eval_step(state: TrainState, batch: Batch) -> Sums:
        logits = classify(state.eval_variables, batch['image'])
        sums = loss_and_metrics(logits, batch['label'], batch['mask'], top_k=config.top_k)
        return lax.psum(sums, AXIS)

    return eval_step


def make_classify(
    config: ConfigDict, model: nn.Module
) -> Callable[[Variables, jax.Array], jax.Array]:
    """Returns (variables, images uint8 [B, S, S, 3] of an evaluation batch) -> logits [B, C].

    Of several views of each image, these are the logarithms of their averaged probabilities.
    Logits are float32; variables are `TrainState.eval_variables`.
    """
    normalize, tta_crops_of = make_normalize(config), make_tta_crops(config)

    def classify(variables: Variables, images: jax.Array) -> jax.Array:
        return model.apply(variables, normalize(images), train=False)

    def classify_views(variables: Variables, images: jax.Array) -> jax.Array:
        views = tta_crops_of(images)
        # One view at a time, so that evaluation takes no more memory than with one.
        log_probabilities = lax.map(lambda x: jax.nn.log_softmax(classify(variables, x)), views)
        return jax.nn.logsumexp(log_probabilities, axis=0) - jnp.log(len(views))

    return classify if config.data.eval_crops == 'center' else classify_views


class _ExampleKeys(NamedTuple):
    """Keys [P, B] of a device's examples, by what they are for."""

    augment: jax.Array
    mix: jax.Array
    model: jax.Array


def _example_keys(seed: int, step: jax.Array, shape: tuple[int, int]) -> _ExampleKeys:
    microbatches, local = shape
    devices, device = lax.axis_size(AXIS), lax.axis_index(AXIS)
    # The order of parallel.Layout: parts, then devices, then examples.
    positions = (jnp.arange(microbatches)[:, None] * devices + device) * local + jnp.arange(local)
    step_key = jax.random.fold_in(jax.random.key(seed), step)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, positions.ravel())
    keys = jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(keys)
    return _ExampleKeys(*keys.reshape(3, microbatches, local))
