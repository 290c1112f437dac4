"""ResNet-50 and its training step as Flax's own ImageNet example has them, to compare ours with.

The mathematics of github.com/google/flax/tree/main/examples/imagenet, written anew in plain Linen
and optax for `benchmarks.tpu_program`. The step is one program over the global batch, which jit
divides among the devices, so BatchNorm's statistics are those of the whole batch. Images come
normalised from the host, in the dtype of the computation. Nothing here is for a GPU, where the
example scales the loss of float16.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

SIZE, CLASSES = 224, 1000
WEIGHT_DECAY, MOMENTUM = 1e-4, 0.9
_EXAMPLES, _WARMUP_EPOCHS, _EPOCHS = 1_281_167, 5, 100
_AXIS = 'batch'


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut, projected where the shape changes."""

    width: int
    strides: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = 4 * self.width
        y = nn.relu(self.norm(name='bn1')(self.conv(self.width, (1, 1), name='conv1')(x)))
        y = self.conv(self.width, (3, 3), strides=self.strides, name='conv2')(y)
        y = nn.relu(self.norm(name='bn2')(y))
        y = self.conv(features, (1, 1), name='conv3')(y)
        y = self.norm(scale_init=nn.initializers.zeros, name='bn3')(y)
        if x.shape != y.shape:
            x = self.conv(features, (1, 1), strides=self.strides, name='conv_proj')(x)
            x = self.norm(name='bn_proj')(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Version 1.5, which strides in the 3x3 convolutions.

    Attributes:
      stage_sizes: blocks per stage.
      num_classes: length of the logits.
      width: channels of the stem.
      dtype: of the computation; parameters, statistics and logits are float32.
    """

    stage_sizes: Sequence[int] = (3, 4, 6, 3)
    num_classes: int = CLASSES
    width: int = 64
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Returns float32 logits [B, num_classes] of normalised images [B, H, W, 3]."""
        conv = functools.partial(nn.Conv, use_bias=False, padding='SAME', dtype=self.dtype)
        norm = functools.partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
        )
        # The one convolution that the example does not pad as 'SAME' does.
        x = conv(self.width, (7, 7), strides=2, padding=3, name='stem')(images)
        x = nn.relu(norm(name='bn_stem')(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding='SAME')
        for stage, size in enumerate(self.stage_sizes, start=1):
            for index in range(1, size + 1):
                x = Bottleneck(
                    width=self.width * 2 ** (stage - 1),
                    strides=2 if stage > 1 and index == 1 else 1,
                    conv=conv,
                    norm=norm,
                    name=f'stage{stage}_block{index}',
                )(x)
        x = nn.Dense(self.num_classes, dtype=self.dtype, name='head')(x.mean(axis=(1, 2)))
        return x.astype(jnp.float32)


class State(NamedTuple):
    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any


def create_optimizer(batch_size: int) -> optax.GradientTransformation:
    """Returns SGD with Nesterov's momentum, whose rate rises for 5 epochs and falls for 95."""
    per_epoch = max(1, _EXAMPLES // batch_size)
    peak = 0.1 * batch_size / 256
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, peak, _WARMUP_EPOCHS * per_epoch, _EPOCHS * per_epoch
    )
    return optax.sgd(schedule, momentum=MOMENTUM, nesterov=True)


def create_state(
    model: ResNet, optimizer: optax.GradientTransformation, image_size: int = SIZE
) -> State:
    """Returns the state before the first step."""
    images = jnp.zeros((1, image_size, image_size, 3), model.dtype)
    variables = model.init(jax.random.key(0), images, train=False)
    params = variables['params']
    return State(jnp.zeros((), jnp.int32), params, variables['batch_stats'], optimizer.init(params))


def make_train_step(
    model: ResNet, optimizer: optax.GradientTransformation
) -> Callable[[State, dict[str, jax.Array]], tuple[State, dict[str, jax.Array]]]:
    """Returns train_step(state, batch) -> (state after one update, {'loss', 'accuracy'}).

    The batch is the global one: {'image': [B, S, S, 3], normalised, 'label': int32 [B]}. The loss
    that is reported leaves out the penalty on the weights.
    """

    def train_step(state, batch):
        def loss_fn(params):
            logits, updates = model.apply(
                {'params': params, 'batch_stats': state.batch_stats},
                batch['image'],
                train=True,
                mutable=['batch_stats'],
            )
            targets = jax.nn.one_hot(batch['label'], model.num_classes)
            loss = optax.softmax_cross_entropy(logits, targets).mean()
            squares = [jnp.sum(x**2) for x in jax.tree.leaves(params) if x.ndim > 1]
            penalty = 0.5 * WEIGHT_DECAY * sum(squares)
            return loss + penalty, (updates['batch_stats'], loss, logits)

        gradients, (batch_stats, loss, logits) = jax.grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        accuracy = (logits.argmax(-1) == batch['label']).mean()
        new_state = State(state.step + 1, params, batch_stats, opt_state)
        return new_state, {'loss': loss, 'accuracy': accuracy}

    return train_step


def shardings(devices: Sequence[jax.Device]) -> tuple[NamedSharding, NamedSharding]:
    """Returns those of the state, which all devices have, and of a batch, divided among them."""
    mesh = Mesh(np.array(devices), (_AXIS,))
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(_AXIS))


def parallelize(step: Callable[..., Any], devices: Sequence[jax.Device]) -> Any:
    """Returns the jitted step, which donates the old state."""
    return jax.jit(
        step, in_shardings=shardings(devices), out_shardings=shardings(devices)[0], donate_argnums=0
    )


def lower_train_step(devices: Sequence[jax.Device], batch_size: int, dtype: str) -> Any:
    """Returns ResNet-50's training step for a global batch on `devices`, ready to be compiled."""
    model, optimizer = ResNet(dtype=jnp.dtype(dtype)), create_optimizer(batch_size)
    state = jax.eval_shape(lambda: create_state(model, optimizer))
    batch = {
        'image': jax.ShapeDtypeStruct((batch_size, SIZE, SIZE, 3), dtype),
        'label': jax.ShapeDtypeStruct((batch_size,), 'int32'),
    }
    return parallelize(make_train_step(model, optimizer), devices).lower(state, batch)
