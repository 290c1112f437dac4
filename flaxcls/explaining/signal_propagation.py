"""How a signal and its gradient travel through the depth of a network, and what is used again."""

import functools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxcls.errors import UserError
from flaxcls.models.intermediates import apply_with_intermediates, layer_names


class SignalStats(NamedTuple):
    """Of one layer's output: root mean square of its values, and the norm of the gradient.

    The gradient is that of the loss, summed over the images, with respect to the output; its norm
    is the Euclidean one for each image, of which the root mean square is taken.
    """

    layer: str
    signal: float
    gradient: float


def signal_and_gradient_norms(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: jax.Array,
    labels: jax.Array,
    *,
    seed: int = 0,
) -> list[SignalStats]:
    """Returns the norms at the outputs of the layers and blocks of a network, first to last.

    BatchNorm and dropout are as in training, and the images are one group of BatchNorm. What plain
    networks do to signal and gradient, shortcuts are there to mend (arXiv:1512.03385, section 1);
    arXiv:1603.05027, section 2, has it in formulas.

    Args:
      model: a network of flaxcls.models.
      variables: its parameters and statistics, at initialisation or trained.
      images: normalised [B, H, W, 3].
      labels: int [B].
      seed: from which the dropout masks are drawn.
    """
    model = model.clone(norm=functools.partial(model.norm, group_size=None))
    names = [name for name in layer_names(model, variables, images) if _is_shown(name)]
    keys = jax.random.split(jax.random.key(seed), len(images))
    record = functools.partial(apply_with_intermediates, model, layers=names, training_keys=keys)

    def loss(perturbations, variables, images, labels):
        logits, outputs = record(variables=variables, images=images, perturbations=perturbations)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum(), outputs

    @jax.jit
    def norms(variables, images, labels):
        _, shapes = jax.eval_shape(loss, None, variables, images, labels)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        gradients, outputs = jax.grad(loss, has_aux=True)(zeros, variables, images, labels)
        return [(_rms(outputs[name]), _norm(gradients[name])) for name in names]

    values = jax.device_get(norms(variables, images, labels))
    return [
        SignalStats(name, float(s), float(g)) for name, (s, g) in zip(names, values, strict=True)
    ]


def _is_shown(name: str) -> bool:
    return not name.startswith(('bn', 'dropout'))


def _rms(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))


def _norm(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32))) / len(x))


def feature_reuse(params: Mapping[str, Any]) -> list[np.ndarray]:
    """Returns how much the layers of each dense block of a DenseNet take from those before them.

    Densely Connected Convolutional Networks, arXiv:1608.06993, section 5, figure 5.

    Args:
      params: parameters of a DenseNet, as in `TrainState.params`.

    Returns:
      For each block of L layers float32 [L + 1, L + 1]. Rows are sources: what the block is given,
      then its layers; columns are targets: its layers, then the transition, or the classifier.
      A value is the mean absolute weight over the source's channels in the target's first
      convolution; NaN where a source comes after its target.

    Raises:
      UserError: the network is not a DenseNet.
    """
    if 'block1_layer1' not in params:
        raise UserError(
            'the network has no dense blocks whose reuse could be shown; take a DenseNet.'
        )
    blocks = []
    while f'block{len(blocks) + 1}_layer1' in params:
        blocks.append(_reuse_in_block(params, len(blocks) + 1))
    return blocks


def _reuse_in_block(params: Mapping[str, Any], block: int) -> np.ndarray:
    layers = sum(bool(re.fullmatch(rf'block{block}_layer\d+', name)) for name in params)
    kernels = [params[f'block{block}_layer{i}']['conv1']['kernel'] for i in range(1, layers + 1)]
    if f'transition{block}' in params:
        kernels.append(params[f'transition{block}']['conv']['kernel'])
    else:
        kernels.append(params['head']['dense']['kernel'])
    ends = [kernel.shape[-2] for kernel in kernels]  # A target sees what is there before it.
    starts = [0, *ends[:-1]]
    table = np.full((layers + 1, layers + 1), np.nan, np.float32)
    for target, kernel in enumerate(kernels):
        strength = np.abs(np.asarray(kernel, np.float32))  # [..., channels in, channels out]
        for source in range(target + 1):
            table[source, target] = strength[..., starts[source] : ends[source], :].mean()
    return table
