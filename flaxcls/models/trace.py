"""Reads the layers of a network, and how they are connected, from its traced program."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core

from flaxcls.models.graph import ACTIVATIONS, JOINS, Layer
from flaxcls.models.receptive_field import Field, hull
from flaxcls.ops.forms import reference
from flaxcls.system.garbage_collection import garbage_collection_paused

# Layers of which nothing is left in evaluation.
_RANDOM = ('Dropout', 'StochasticDepth')
# Functions that are one layer, by their named scope: what they are called in paths, and the kind.
_FUNCTIONS = {
    'local_response_norm': ('lrn', 'LRN'),
    'adaptive_avg_pool': ('adaptive_avg_pool', 'AdaptiveAvgPool'),
    'relu6': ('relu6', 'ReLU6'),
}
_WINDOWS = {'reduce_window_max': 'MaxPool', 'reduce_window_sum': 'AvgPool'}
_REDUCTIONS = {
    'reduce_sum': ('global_avg_pool', 'GlobalAvgPool'),
    'reduce_max': ('global_max_pool', 'GlobalMaxPool'),
}


@garbage_collection_paused()
def trace_layers(model: nn.Module, image_size: int) -> list[Layer]:
    """Returns layers and joins of layers in the order in which an image meets them.

    They are those of evaluation, and dropout. Nothing is computed.

    Args:
      model: any network of Linen that is called with `images` and `train`.
      image_size: side of the images, pixels.
    """
    modules = {}

    def record(call, args, kwargs, context):
        if context.method_name != '__call__':
            return call(*args, **kwargs)
        module, path = context.module, '/'.join(context.module.path)
        modules[path] = module
        with jax.named_scope(f'@{path}@'):
            output = call(*args, **kwargs)
            # Which evaluation leaves out: the mark is what there is to find in the program.
            dropped = type(module).__name__ in _RANDOM and module.rate > 0
            return checkpoint_name(output, 'dropped') if dropped else output

    # `init` runs the network, and draws its weights without any product.
    init = lambda x: model.init(jax.random.key(0), x, train=False)  # noqa: E731
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    with reference(), nn.intercept_methods(record):
        program, variables = jax.make_jaxpr(init, return_shape=True)(images)
    weights = defaultdict(dict)
    for path, leaf in flatten_dict(variables['params']).items():
        weights['/'.join(path[:-1])][path[-1]] = leaf
    reader = _Reader(modules, weights)
    reader.read(program, [_Value((-1,), Field())], '')
    return _numbered(reader.finish())


class _Value(NamedTuple):
    """What is known of an array that depends on the image.

    Attributes:
      sources: the layers that it comes from; several: their maps, concatenated.
      field: what of the image one pixel of it sees; None: all.
      padding: rows above and below that the operation before has added.
    """

    sources: tuple[int, ...]
    field: Field | None
    padding: tuple[int, int] = (0, 0)


class _Reader:
    """Follows the image through a program, and collects the layers that it meets."""

    def __init__(self, modules: dict[str, nn.Module], weights: dict[str, dict[str, Any]]):
        self.layers: list[Layer] = []
        self._modules, self._weights = modules, dict(weights)
        # Modules that weigh nothing by a kernel, such as BatchNorm, are one layer each.
        inner = {path.rpartition('/')[0] for path in modules}
        self._plain = {
            path for path, own in weights.items() if 'kernel' not in own and path not in inner
        }
        self._unread = {
            path: sum(leaf.size for leaf in own.values()) for path, own in weights.items()
        }
        # Of each scope whose operations are one layer: that layer, and the field of its inputs.
        self._open: dict[str, int] = {}
        self._entered: dict[str, Field | None] = {}

    def read(self, closed: Any, inputs: Sequence[_Value | None], scope: str) -> list:
        """Returns what is known of the outputs of a program, as of its inputs; None: nothing."""
        program = getattr(closed, 'jaxpr', closed)
        known = dict(zip(program.invars, inputs, strict=True))
        look_up = lambda x: None if isinstance(x, core.Literal) else known.get(x)  # noqa: E731
        for equation in program.eqns:
            values = [look_up(x) for x in equation.invars]
            if any(values):
                inside = f'{scope}/{equation.source_info.name_stack}'
                known |= zip(equation.outvars, self._outputs(equation, values, inside), strict=True)
        return [look_up(x) for x in program.outvars]

    def finish(self) -> list[Layer]:
        """Returns the layers, with all parameters: a module's own count with its last layer."""
        for path, parameters in self._unread.items():
            inside = [layer for layer in self.layers if f'/{layer.path}'.startswith(f'/{path}/')]
            (inside or self.layers)[-1].parameters += parameters
        return self.layers

    def _outputs(self, equation: Any, values: list, scope: str) -> list:
        name = equation.params.get('name')
        inner = equation.params.get('jaxpr', equation.params.get('call_jaxpr'))
        inner = getattr(inner, 'jaxpr', inner)
        if name not in ACTIVATIONS and inner and len(inner.invars) == len(values):
            return self.read(inner, values, scope)
        present = [value for value in values if value]
        result = self._one_layer(equation, present, scope) or self._result(equation, present, scope)
        return [result] * len(equation.outvars)

    def _one_layer(self, equation: Any, values: list[_Value], scope: str) -> _Value | None:
        """Returns the result within a module or function that is one layer; None: elsewhere."""
        function = next((name for name in _FUNCTIONS if name in scope.split('/')), None)
        path = _module_path(scope)
        module = self._modules.get(path)
        is_random = type(module).__name__ in _RANDOM
        if not (function or is_random or path in self._plain):
            return None
        key = f'{path}:{function}'
        index = self._open.get(key)
        own = {(index,), self.layers[index].inputs} if index is not None else ()
        if any(value.sources not in own for value in values):
            name, kind = _FUNCTIONS.get(function, (None, type(module).__name__))
            rate = float(module.rate) if is_random else None
            (index,), self._entered[key], _ = self._add(
                equation, values, path, kind, name, rate=rate
            )
            self._open[key] = index
        layer, field = self.layers[index], self._entered[key]
        layer.output = equation.outvars[0].aval.shape
        if function == 'adaptive_avg_pool':
            field = self._widen(layer, field)
        return _Value((index,), field)

    def _widen(self, layer: Layer, field: Field | None) -> Field | None:
        """Returns what the largest cells of an adaptive pooling see, and notes their size."""
        pixels, cells = self.layers[layer.inputs[0]].output[1], layer.output[1]
        largest = max(-(-(i + 1) * pixels // cells) - i * pixels // cells for i in range(cells))
        layer.kernel, layer.stride = (largest, largest), pixels // cells
        field = field and field.through(largest, layer.stride, 0)
        layer.receptive_field = field and field.size
        return field

    def _result(self, equation: Any, values: list[_Value], scope: str) -> _Value:
        path, primitive = _module_path(scope), equation.primitive.name
        shape = equation.invars[0].aval.shape
        name = equation.params.get('name', primitive)
        if name in ACTIVATIONS:
            return self._add(equation, values, path, ACTIVATIONS[name], name)
        if primitive == 'conv_general_dilated':
            return self._convolution(equation, values, path)
        if primitive == 'dot_general' and 'kernel' in self._weights.get(path, ()):
            return self._product(equation, values, path)
        if primitive in _WINDOWS and len(shape) == 4:
            return self._pooling(equation, values[0], path)
        if primitive in _REDUCTIONS and len(shape) == 4 and {1, 2} <= set(equation.params['axes']):
            name, kind = _REDUCTIONS[primitive]
            return self._add(equation, values, path, kind, name, field=None)
        if primitive in ('pad', 'slice') and len(shape) == 4:
            return self._moved(equation, values[0], path)
        sources = tuple(dict.fromkeys(source for v in values for source in v.sources))
        field = hull(value.field for value in values)
        if primitive != 'concatenate' and len({value.sources for value in values}) > 1:
            kind = JOINS.get(primitive, 'Join')
            return self._add(equation, values, path, kind, kind.lower())
        if len(equation.outvars[0].aval.shape) != 4:
            field = None
        return _Value(sources, field)

    def _product(self, equation: Any, values: list[_Value], path: str) -> _Value:
        (contracted, _), _ = equation.params['dimension_numbers']
        length = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        macs = equation.outvars[0].aval.size * length
        return self._add(
            equation, values, path, type(self._modules[path]).__name__, field=None, macs=macs
        )

    def _convolution(self, equation: Any, values: list[_Value], path: str) -> _Value:
        params, result = equation.params, equation.outvars[0].aval
        spec = params['dimension_numbers']
        kernel = equation.invars[1].aval.shape
        height, width = (kernel[axis] for axis in spec.rhs_spec[2:])
        stride, padding = params['window_strides'][0], tuple(map(int, params['padding'][0]))
        dilated = (height - 1) * params['rhs_dilation'][0] + 1
        field = values[0].field and values[0].field.through(dilated, stride, padding[0])
        return self._add(
            equation,
            values,
            path,
            type(self._modules[path]).__name__,
            field=field,
            macs=result.size * math.prod(kernel) // kernel[spec.rhs_spec[0]],
            kernel=(height, width),
            stride=stride,
            padding=padding,
            groups=params['feature_group_count'],
        )

    def _pooling(self, equation: Any, value: _Value, path: str) -> _Value:
        params = equation.params
        _, height, width, _ = params['window_dimensions']
        stride, padding = params['window_strides'][1], params['padding'][1]
        field = value.field and value.field.through(height, stride, padding[0])
        kind = _WINDOWS[equation.primitive.name]
        name = 'max_pool' if kind == 'MaxPool' else 'avg_pool'
        both = tuple(int(a + b) for a, b in zip(padding, value.padding, strict=True))
        options = {'kernel': (height, width), 'stride': stride, 'padding': both}
        return self._add(equation, [value], path, kind, name, field=field, **options)

    def _moved(self, equation: Any, value: _Value, path: str) -> _Value:
        """Returns the result of padding or slicing maps [B, H, W, C]."""
        if equation.primitive.name == 'pad':
            _, (above, below, _), _, channels = equation.params['padding_config']
            field = value.field and value.field.through(1, 1, int(above))
            if channels[1]:
                return self._add(equation, [value], path, 'PadChannels', 'pad', field=field)
            return _Value(value.sources, field, (int(above), int(below)))
        first = equation.params['start_indices'][1]
        stride = (equation.params['strides'] or (1, 1, 1, 1))[1]
        field = value.field and value.field.through(1, stride, -first)
        if stride == 1:
            return _Value(value.sources, field)
        kind = 'Subsample'
        return self._add(equation, [value], path, kind, 'subsample', field=field, stride=stride)

    def _add(
        self,
        equation: Any,
        values: list[_Value],
        path: str,
        kind: str,
        function: str | None = None,
        **facts: Any,
    ) -> _Value:
        """Adds a layer, and returns its output."""
        field = facts.pop('field', hull(value.field for value in values))
        # Once, where a module is called several times.
        parameters = 0 if function else self._unread.pop(path, 0)
        self.layers.append(
            Layer(
                '/'.join(filter(None, (path, function))),
                kind,
                tuple(source for value in values for source in value.sources),
                equation.outvars[0].aval.shape,
                parameters=parameters,
                receptive_field=field and field.size,
                **facts,
            )
        )
        return _Value((len(self.layers) - 1,), field)


def _module_path(scope: str) -> str:
    return re.findall('@([^@]*)@', scope)[-1]


def _numbered(layers: list[Layer]) -> list[Layer]:
    """Returns the layers, those of one path told apart by numbers."""
    counts, seen = Counter(layer.path for layer in layers), Counter()
    for layer in layers:
        path = layer.path
        if counts[path] > 1:
            seen[path] += 1
            layer.path = f'{path}{seen[path]}'
    return layers
