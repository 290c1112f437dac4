"""The training step and the evaluation step: pure functions of (state, batch) on one device.

They are written for a device's share of the batch, with the named axis AXIS over the devices;
`flaxcls.parallel` runs them.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax
from ml_collections import ConfigDict

from flaxcls.data.augment import make_augment, make_normalize, ten_crops
from flaxcls.data.mixing import make_mix
from flaxcls.metrics import Sums, batch_sums
from flaxcls.models import frozen_patterns
from flaxcls.optim import merge_frozen, split_frozen
from flaxcls.train_state import TrainState

AXIS = 'devices'
Batch = dict[str, jax.Array]


def make_train_step(
    config: ConfigDict, model: nn.Module, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Batch], tuple[TrainState, Sums]]:
    """Returns train_step(state, batch) -> (state after one update, sums over the global batch).

    The batch is {'image': uint8 [B, S, S, 3], 'label': int32 [B]}, a device's share. Every random
    draw belongs to an example: its key is folded from the seed, the step and the example's
    position in the global batch, so that it does not depend on the layout of devices.
    """
    augment, normalize = make_augment(config), make_normalize(config)
    mix = make_mix(config, AXIS)
    patterns = frozen_patterns(config)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        augment_keys, mix_keys, model_keys = _example_keys(
            config.seed, state.step, len(batch['label'])
        )
        images = augment(augment_keys, batch['image'].astype(jnp.float32))
        images, targets, labels = mix(mix_keys, images, batch['label'])
        images = normalize(images)

        trained, frozen = split_frozen(state.params, patterns)

        def loss_fn(trained: Any) -> tuple[jax.Array, tuple[Any, Sums]]:
            params = merge_frozen(trained, frozen)
            logits, updates = model.apply(
                {'params': params, 'batch_stats': state.batch_stats},
                images,
                train=True,
                example_keys=model_keys,
                mutable=['batch_stats'],
            )
            sums = batch_sums(
                logits,
                labels,
                jnp.ones_like(labels, bool),
                top_k=config.top_k,
                targets=optax.smooth_labels(targets, config.label_smoothing),
            )
            # Devices have equal shares, so the mean of their means is the batch's.
            loss = sums['loss_sum'] / len(labels)
            return loss, (updates.get('batch_stats', {}), sums)

        gradients, (batch_stats, sums) = jax.grad(loss_fn, has_aux=True)(trained)
        # The one reduction over devices (BatchNorm's groups apart, where they span devices).
        gradients, batch_stats = lax.pmean((gradients, batch_stats), AXIS)
        updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
        new_state = TrainState(
            step=state.step + 1,
            params=merge_frozen(optax.apply_updates(trained, updates), frozen),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        return new_state, lax.psum(sums, AXIS)

    return train_step


def make_eval_step(config: ConfigDict, model: nn.Module) -> Callable[[TrainState, Batch], Sums]:
    """Returns eval_step(state, batch) -> sums over the unmasked examples of the global batch.

    The batch is {'image': uint8 [B, S, S, 3], 'label': int32 [B], 'mask': bool [B]}, a device's
    share. Running statistics are used and left alone; the loss has no label smoothing.
    """
    classify = make_classify(config, model)

    def eval_step(state: TrainState, batch: Batch) -> Sums:
        logits = classify(state, batch['image'])
        sums = batch_sums(logits, batch['label'], batch['mask'], top_k=config.top_k)
        return lax.psum(sums, AXIS)

    return eval_step


def make_classify(
    config: ConfigDict, model: nn.Module
) -> Callable[[TrainState, jax.Array], jax.Array]:
    """Returns (state, images uint8 [B, S, S, 3] of an evaluation batch) -> float32 logits [B, C].

    With ten crops, these are the logarithms of the probabilities averaged over the crops.
    """
    normalize = make_normalize(config)

    def classify(state: TrainState, images: jax.Array) -> jax.Array:
        variables = {'params': state.params, 'batch_stats': state.batch_stats}
        return model.apply(variables, normalize(images), train=False)

    def classify_ten_crops(state: TrainState, images: jax.Array) -> jax.Array:
        crops = ten_crops(images, config.data.image_size)
        # One crop at a time, so that evaluation takes no more memory than with one crop.
        log_probabilities = lax.map(lambda x: jax.nn.log_softmax(classify(state, x)), crops)
        return jax.nn.logsumexp(log_probabilities, axis=0) - jnp.log(len(crops))

    return classify_ten_crops if config.data.eval_crops == 'ten' else classify


def _example_keys(seed: int, step: jax.Array, local: int) -> tuple[jax.Array, ...]:
    """Returns three keys per example of this device, [local] each: to augment, mix, and train."""
    positions = lax.axis_index(AXIS) * local + jnp.arange(local)
    step_key = jax.random.fold_in(jax.random.key(seed), step)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, positions)
    return tuple(jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(keys))
