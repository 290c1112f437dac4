"""A trained network as one pure function of images alone, as it is exported.

Normalisation is inside, BatchNorm is folded into the convolutions before it, and everything is
computed in float32.
"""

import collections
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.ad_checkpoint import checkpoint_name
from ml_collections import ConfigDict

from flaxcls import models
from flaxcls.config import set_option
from flaxcls.data.augment import make_normalize, make_views
from flaxcls.models.activations import apply_and_record
from flaxcls.models.batch_norm import BatchNorm
from flaxcls.models.densenet import DenseNet
from flaxcls.models.layers import Conv
from flaxcls.models.plain_forms import plain_forms
from flaxcls.models.resnet import ResNet

Inference = Callable[[jax.Array], dict[str, jax.Array]]
Path = tuple[str, ...]  # Of a layer, as in its module.


def make_inference(
    config: ConfigDict,
    variables: Mapping[str, Any],
    *,
    temperature: float = 1.0,
    with_maps: bool = False,
) -> Inference:
    """Returns images uint8 [N, S, S, 3] -> {'probabilities': float32 [N, C]}, for any N.

    Args:
      config: of the run; images are looked at as it evaluates them, S as in `make_eval_cut`.
      variables: {'params': ..., 'batch_stats': ...}; they become constants of the function.
      temperature: divides the logits.
      with_maps: adds 'maps', float32 [N, h, w, C], the class-activation map of each class (see
        `attribution.cam`), if the network has them and images are looked at once.
    """
    config = config.copy_and_resolve_references()
    set_option(config, 'model.dtype', 'float32')
    set_option(config, 'model.remat', 'none')
    model, normalize = models.model_from_config(config), make_normalize(config)
    variables = jax.tree.map(np.asarray, dict(variables))
    folded = fold_batch_norm(model, variables, config.data.image_size)
    views_of = make_views(config)
    once = config.data.eval_crops == 'center'
    layers = ['feature_map'] if with_maps and once and isinstance(model, ResNet | DenseNet) else []

    def apply(images: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        with plain_forms(), nn.intercept_methods(folded.intercept):
            return apply_and_record(model, folded.variables, normalize(images), layers)

    def infer(images: jax.Array) -> dict[str, jax.Array]:
        if not once:  # As in steps.make_classify.
            of_views = [jax.nn.softmax(apply(view)[0]) for view in views_of(images)]
            logits = jnp.log(sum(of_views) / len(of_views))
            return {'probabilities': jax.nn.softmax(logits / temperature)}
        logits, found = apply(images)
        outputs = {'probabilities': jax.nn.softmax(logits / temperature)}
        if layers:
            weights = variables['params']['head']['dense']['kernel']
            outputs['maps'] = jnp.einsum('bhwf,fc->bhwc', found['feature_map'], weights)
        return outputs

    return infer


class Folded(NamedTuple):
    """A network whose BatchNorm, as it is in evaluation, is folded away where it can be.

    Attributes:
      variables: the network's, the convolutions before a folded BatchNorm scaled.
      norms: path of a BatchNorm -> (factor, shift) [C] each; the factor of a folded one is None.
    """

    variables: Mapping[str, Any]
    norms: Mapping[Path, tuple[np.ndarray | None, np.ndarray]]

    def intercept(self, call, args, kwargs, context):
        """Computes the BatchNorm layers; for `nn.intercept_methods`."""
        if not _is_call(context, BatchNorm):
            return call(*args, **kwargs)
        factor, shift = self.norms[context.module.path]
        return (args[0] if factor is None else args[0] * factor) + shift


def fold_batch_norm(model: nn.Module, variables: Mapping[str, Any], side: int) -> Folded:
    """Returns the network with each BatchNorm folded that alone sees a convolution's output.

    Args:
      model: in evaluation.
      variables: its parameters and statistics, as arrays of numpy.
      side: of the images, in pixels; what is folded is the same for all.
    """
    parameters = flatten_dict(variables['params'])
    statistics = flatten_dict(variables.get('batch_stats', {}))
    norms = {}
    for path, (eps, convolution) in _find_norms(model, variables, side).items():
        factor, shift = _affine(parameters, statistics, path, eps)
        if convolution is None:
            norms[path] = factor.astype(np.float32), shift.astype(np.float32)
            continue
        norms[path] = None, shift.astype(np.float32)
        for name in ('kernel', 'bias'):
            key = (*convolution, name)
            if key in parameters:
                parameters[key] = (parameters[key] * factor).astype(np.float32)
    return Folded({**variables, 'params': unflatten_dict(parameters)}, norms)


def _find_norms(
    model: nn.Module, variables: Mapping[str, Any], side: int
) -> dict[Path, tuple[float, Path | None]]:
    """Returns path of a BatchNorm -> its eps, and the convolution whose output it alone sees.

    Both kinds of layers leave marks in the program, and BatchNorm nothing else.
    """
    layers: dict[str, nn.Module] = {}

    def mark(call, args, kwargs, context):
        kind = next((kind for kind in (Conv, BatchNorm) if _is_call(context, kind)), None)
        if kind is None:
            return call(*args, **kwargs)
        name = f'{kind.__name__} {"/".join(context.module.path)}'
        layers[name] = context.module
        return checkpoint_name(args[0] if kind is BatchNorm else call(*args, **kwargs), name)

    def apply(images):
        with plain_forms(), nn.intercept_methods(mark):
            return model.apply(variables, images, train=False)

    program = jax.make_jaxpr(apply)(jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)).jaxpr
    uses = collections.Counter(
        variable
        for equation in program.eqns
        for variable in equation.invars
        if not isinstance(variable, jax.extend.core.Literal)
    )
    makers, norms = {}, {}
    for equation in program.eqns:
        layer = layers.get(equation.params.get('name'))
        if isinstance(layer, Conv):
            makers[equation.outvars[0]] = layer.path
        elif isinstance(layer, BatchNorm):
            seen = equation.invars[0]
            norms[layer.path] = layer.eps, makers.get(seen) if uses[seen] == 1 else None
    return norms


def _affine(
    parameters: Mapping[Path, Any], statistics: Mapping[Path, Any], path: Path, eps: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns factor and shift, float64 [C], of a BatchNorm x -> x * factor + shift."""
    mean, var = (statistics[*path, name].astype(float) for name in ('mean', 'var'))
    scale, bias = (parameters[*path, name].astype(float) for name in ('scale', 'bias'))
    factor = scale / np.sqrt(var + eps)
    return factor, bias - mean * factor


def _is_call(context: nn.module.InterceptorContext, kind: type[nn.Module]) -> bool:
    return isinstance(context.module, kind) and context.method_name == '__call__'
