"""What the layers of a network put out, and where a small change of it goes."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from flaxcls.errors import UserError
from flaxcls.system.text import did_you_mean


def apply_with_intermediates(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: jax.Array,
    layers: Sequence[str],
    *,
    perturbations: Mapping[str, jax.Array] | None = None,
    training_keys: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the logits, and what the layers put out on the way to them.

    Args:
      model: a network of flaxcls.models.
      variables: its parameters and statistics.
      images: normalised [B, H, W, 3].
      layers: paths such as stage1_block1/conv1; also feature_map and features, see
        layers.Intermediate.
      perturbations: layer -> what is added to its output, of the same shape. The gradient with
        respect to a perturbation is that with respect to the output.
      training_keys: of each example [B], for dropout: BatchNorm and dropout are as in training, and
        no statistics are kept. None: as in evaluation.

    Raises:
      UserError: the network has no such layer.
    """
    outputs, paths = {}, []

    def record(call, args, kwargs, context):
        output = call(*args, **kwargs)
        if context.method_name != '__call__':
            return output
        path = '/'.join(context.module.path)
        paths.append(path)
        if path not in layers:
            return output
        if perturbations and path in perturbations:
            output = output + perturbations[path]
        outputs[path] = output
        return output

    with nn.intercept_methods(record):
        if training_keys is None:
            logits = model.apply(variables, images, train=False)
        else:
            options = {'example_keys': training_keys, 'mutable': ['batch_stats']}
            logits, _ = model.apply(variables, images, train=True, **options)
    for layer in layers:
        if layer not in outputs:
            remedy = (
                did_you_mean(layer, paths) or f'; it has {", ".join(filter(None, paths[:12]))} ...'
            )
            raise UserError(f'the network has no layer {layer!r}{remedy}.')
    return logits, {layer: outputs[layer] for layer in layers}


def layer_names(model: nn.Module, variables: Mapping[str, Any], images: jax.Array) -> list[str]:
    """Returns the paths of a network's outermost layers, in the order of their outputs."""
    paths = []

    def note(call, args, kwargs, context):
        output = call(*args, **kwargs)
        if context.method_name == '__call__' and len(context.module.path) == 1:
            paths.append(context.module.path[0])
        return output

    with nn.intercept_methods(note):
        jax.eval_shape(lambda *given: model.apply(*given, train=False), variables, images)
    return paths
