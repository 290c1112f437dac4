"""Networks in evaluation with BatchNorm folded into the convolutions beside it."""

import collections
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.ad_checkpoint import checkpoint_name

from flaxcls.models.batch_norm import BatchNorm
from flaxcls.models.layers import Conv
from flaxcls.ops.batch_norm import join
from flaxcls.ops.forms import reference
from flaxcls.ops.fusion import is_relu

Path = tuple[str, ...]  # Of a layer, as in its module.
# A channel whose factor is much smaller than others' would get activations as much larger, and
# these the range that int8 has for all.
_MOST_UNEQUAL_FACTORS = 100
_BEGINS, _ENDS = 'begins', 'ends'


class Folded(NamedTuple):
    """A network whose BatchNorm, as it is in evaluation, is folded away where it can be.

    Attributes:
      variables: the network's, the convolutions beside a folded BatchNorm scaled.
      norms: path of a BatchNorm -> (factor, shift) [C] each; the factor of a folded one is None.
    """

    variables: Mapping[str, Any]
    norms: Mapping[Path, tuple[np.ndarray | None, np.ndarray]]

    def intercept(self, call, args, kwargs, context):
        """Computes the BatchNorm layers; for `nn.intercept_methods`."""
        if not _is_call(context, BatchNorm):
            return call(*args, **kwargs)
        factor, shift = self.norms[context.module.path]
        x = _joined(args[0])
        return (x if factor is None else x * factor) + shift


class Norm(NamedTuple):
    """A BatchNorm and the convolutions that may take its factors.

    Attributes:
      eps: added to its variance.
      before: the convolution whose output it alone sees; None: there is none.
      after: the convolutions that alone see the ReLU of its output, which alone sees that.
    """

    eps: float
    before: Path | None
    after: list[Path]


def fold_batch_norm(model: nn.Module, variables: Mapping[str, Any], side: int) -> Folded:
    """Returns the network with each BatchNorm's factors taken by convolutions, where they can be.

    Those of a convolution's output scale its output channels. Those before a ReLU, if positive,
    scale the input channels of the convolutions after it, since relu(a x + b) = a relu(x + b / a).

    Args:
      model: in evaluation.
      variables: its parameters and statistics, as arrays of numpy.
      side: of the images, in pixels; what is folded is the same for all.
    """
    parameters = flatten_dict(variables['params'])
    statistics = flatten_dict(variables.get('batch_stats', {}))

    def scale(path: Path, factor: np.ndarray) -> None:
        parameters[path] = (parameters[path] * factor).astype(np.float32)

    norms = {}
    for path, norm in find_norms(model, variables, side).items():
        factor, shift = _affine(parameters, statistics, path, norm.eps)
        if norm.before:
            for name in ('kernel', 'bias'):
                if (*norm.before, name) in parameters:
                    scale((*norm.before, name), factor)
            factor = None
        elif norm.after and factor.min() * _MOST_UNEQUAL_FACTORS > factor.max() > 0:
            for convolution in norm.after:
                scale((*convolution, 'kernel'), factor[:, None])
            factor, shift = None, shift / factor
        norms[path] = factor if factor is None else np.float32(factor), np.float32(shift)
    return Folded({**variables, 'params': unflatten_dict(parameters)}, norms)


def find_norms(model: nn.Module, variables: Mapping[str, Any], side: int) -> dict[Path, Norm]:
    """Returns each BatchNorm of a network by its path; see `fold_batch_norm`."""
    program, layer_at = _trace(model, variables, side)
    makers, seen_by = {}, collections.defaultdict(list)
    for equation in program.eqns:
        makers |= dict.fromkeys(equation.outvars, equation)
        for variable in equation.invars:
            if not isinstance(variable, jax.extend.core.Literal):
                seen_by[variable].append(equation)
    for variable in program.outvars:
        seen_by[variable].append(None)

    def before(equation: Any) -> Path | None:
        (seen,) = equation.invars
        layer = layer_at(makers.get(seen), _ENDS)
        return layer.path if isinstance(layer, Conv) and len(seen_by[seen]) == 1 else None

    def after(equation: Any) -> list[Path]:
        users = seen_by[equation.outvars[0]]
        if len(users) != 1 or users[0] is None or not is_relu(users[0]):
            return []
        layers = [layer_at(user, _BEGINS) for user in seen_by[users[0].outvars[0]]]
        fit = all(isinstance(layer, Conv) and layer.groups == 1 for layer in layers)
        return [layer.path for layer in layers] if fit else []

    norms = {}
    for equation in program.eqns:
        if isinstance(layer := layer_at(equation, _BEGINS), BatchNorm):
            norms[layer.path] = Norm(layer.eps, before(equation), [])
        elif isinstance(layer := layer_at(equation, _ENDS), BatchNorm):
            norms[layer.path] = norms[layer.path]._replace(after=after(equation))
    return norms


def _trace(model: nn.Module, variables: Mapping[str, Any], side: int) -> tuple[Any, Any]:
    """Returns the program of a network, and (equation, begins or ends) -> the layer that does.

    Convolutions and BatchNorm leave marks where they begin and end, and BatchNorm nothing else.
    """
    layers: dict[str, nn.Module] = {}

    def mark(call, args, kwargs, context):
        if not (_is_call(context, BatchNorm) or _is_call(context, Conv)):
            return call(*args, **kwargs)
        name = '/'.join(context.module.path)
        layers[name] = context.module
        x = checkpoint_name(_joined(args[0]), f'{_BEGINS} {name}')
        return checkpoint_name(call(x) if _is_call(context, Conv) else x, f'{_ENDS} {name}')

    def apply(images):
        with reference(), nn.intercept_methods(mark):
            return model.apply(variables, images, train=False)

    program = jax.make_jaxpr(apply)(jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)).jaxpr

    def layer_at(equation: Any, place: str) -> nn.Module | None:
        kind, _, name = (equation.params.get('name', '') if equation else '').partition(' ')
        return layers.get(name) if kind == place else None

    return program, layer_at


def _joined(x: jax.Array | tuple[jax.Array, ...]) -> jax.Array:
    return join(x) if isinstance(x, tuple) else x


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
