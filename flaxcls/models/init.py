"""Initial weights: initializers that draw on the host, and `init` without compiling the network."""

import contextlib
import contextvars
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval

from flaxcls.ops.forms import reference
from flaxcls.system.garbage_collection import garbage_collection_paused

Initializer = Callable[..., jax.Array]


Fill = Callable[[np.random.Generator, np.ndarray], None]  # Writes float32 values in place.


class Draw(NamedTuple):
    """An initial weight that was asked for, and is yet to be drawn."""

    key: jax.Array | None  # None: it needs none.
    fill: Fill
    stand_in: jax.Array  # The zeros that were returned in its place.


_RECORD: contextvars.ContextVar[list[Draw] | None] = contextvars.ContextVar('draws', default=None)


@contextlib.contextmanager
def recording() -> Iterator[list[Draw]]:
    """Within it, initializers draw nothing and return zeros; the list records each request."""
    draws = []
    token = _RECORD.set(draws)
    try:
        yield draws
    finally:
        _RECORD.reset(token)


def draw_all(
    fills: Sequence[tuple[Fill, np.ndarray, tuple[int, ...]]], *, stream_size: int = 2**26
) -> list[np.ndarray]:
    """Returns float32 values for each (fill, key data uint32 [2], shape), drawn on all cores.

    After `stream_size` values a weight continues with a new stream, which another thread can draw.
    """
    values = [np.empty(math.prod(shape), np.float32) for _, _, shape in fills]
    with futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        streams = [
            pool.submit(fill, generator, part)
            for (fill, key_data, _), flat in zip(fills, values, strict=True)
            for generator, part in _streams(key_data, flat, stream_size)
        ]
    for stream in streams:
        stream.result()
    return [flat.reshape(shape) for flat, (_, _, shape) in zip(values, fills, strict=True)]


def _streams(key_data: np.ndarray, flat: np.ndarray, size: int) -> Iterator:
    """Yields (generator, the part of `flat` that it fills)."""
    bits = np.random.Philox(key=np.asarray(key_data, np.uint64))
    for start in range(0, flat.size, size):
        yield np.random.Generator(bits), flat[start : start + size]
        bits = bits.jumped()


def _on_host(fill: Fill) -> Initializer:
    def initializer(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        if (draws := _RECORD.get()) is not None:
            return _stand_in(draws, key, fill, shape, dtype)
        draw = lambda key_data: draw_all([(fill, key_data, shape)])[0]  # noqa: E731
        result = jax.ShapeDtypeStruct(shape, jnp.float32)
        return jax.pure_callback(draw, result, jax.random.key_data(key)).astype(dtype)

    return initializer


def _constant(value: float) -> Initializer:
    def initializer(key: jax.Array | None, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        if (draws := _RECORD.get()) is not None:
            return _stand_in(draws, None, lambda _, values: values.fill(value), shape, dtype)
        return jnp.full(shape, value, dtype)

    return initializer


def _stand_in(draws: list[Draw], key, fill: Fill, shape, dtype) -> jax.Array:
    draws.append(Draw(key, fill, jnp.zeros(shape, dtype)))
    return draws[-1].stand_in


zeros, ones = _constant(0), _constant(1)


def normal(std: float) -> Initializer:
    """Returns an initializer drawing from N(0, std**2)."""

    def fill(rng: np.random.Generator, values: np.ndarray) -> None:
        rng.standard_normal(dtype=np.float32, out=values)
        values *= np.float32(std)

    return _on_host(fill)


def uniform_fan_in(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Draws from +-1 / sqrt(fan in), as the reference implementations do for the classifier."""
    bound = np.float32(1 / math.sqrt(math.prod(shape[:-1])))

    def fill(rng: np.random.Generator, values: np.ndarray) -> None:
        rng.random(dtype=np.float32, out=values)
        values *= 2
        values -= 1
        values *= bound

    return _on_host(fill)(key, shape, dtype)


def normal_per_filter(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Draws from N(0, 1 / filters), the filters being the layer's outputs."""
    return normal(1 / math.sqrt(shape[-1]))(key, shape, dtype)


def he_normal_fan_in(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Draws from N(0, 2 / fan in): He et al., arXiv:1502.01852, equation 10."""
    return normal(math.sqrt(2 / math.prod(shape[:-1])))(key, shape, dtype)


def he_normal_fan_out(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Draws from N(0, 2 / fan out): He et al., arXiv:1502.01852, equation 14."""
    fan_out = math.prod(shape[:-2]) * shape[-1]
    return normal(math.sqrt(2 / fan_out))(key, shape, dtype)


@dataclasses.dataclass(frozen=True)
class Initialization:
    """A network's `init`, traced once for all that is asked of it."""

    abstract: dict[str, Any]  # The shapes and dtypes of the variables.
    _fills: dict[int, Fill]  # By the place among the leaves.
    _program: core.ClosedJaxpr  # A key -> those of fills, and the leaves that have none.
    _outputs: Any  # The structure of what the program returns.

    @garbage_collection_paused()
    def draw(self, key: jax.Array) -> dict[str, Any]:
        """Returns {'params': ..., 'batch_stats': ...}; the latter is empty without BatchNorm.

        The values are those of `model.init(key, images, train=False)`, which XLA takes up to a
        quarter of a minute to compile.
        """
        if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):  # Of jax.random.PRNGKey.
            key = jax.random.wrap_key_data(key)
        # The initializers draw on the host.
        with _on_cpu():
            variables = self._draw(key)
        return {'params': variables['params'], 'batch_stats': variables.get('batch_stats', {})}

    def _draw(self, key: jax.Array) -> dict[str, Any]:
        # Primitive by primitive: hundreds of keys are one small program, and not a large one.
        values = core.jaxpr_as_fun(self._program)(key)
        keys, leaves = jax.tree.unflatten(self._outputs, values)
        abstract, structure = jax.tree.flatten(self.abstract)
        fills = [
            (fill, np.asarray(keys.get(place, [0, 0])), abstract[place].shape)
            for place, fill in self._fills.items()
        ]
        for place, value in zip(self._fills, draw_all(fills), strict=True):
            leaves[place] = jnp.asarray(value, abstract[place].dtype)
        return jax.tree.unflatten(structure, [leaves[place] for place in sorted(leaves)])


@garbage_collection_paused()
def trace_initialization(model: nn.Module, image_size: int) -> Initialization:
    """Returns the `init` of a network for images of this side, with nothing computed."""
    draws: dict[int, Draw] = {}

    def init(key: jax.Array) -> tuple[Any, dict[int, jax.Array], dict[int, jax.Array]]:
        images = jnp.zeros((1, image_size, image_size, 3), jnp.float32)
        with recording() as asked, reference():
            variables = model.init(key, images, train=False)
        by_stand_in = {id(draw.stand_in): draw for draw in asked}
        leaves = dict(enumerate(jax.tree.leaves(variables)))
        draws.update({p: by_stand_in[id(x)] for p, x in leaves.items() if id(x) in by_stand_in})
        keys = {place: draw.key for place, draw in draws.items() if draw.key is not None}
        others = {place: leaf for place, leaf in leaves.items() if place not in draws}
        return variables, jax.tree.map(jax.random.key_data, keys), others

    key = jax.eval_shape(jax.random.key, 0)  # A real one would take the devices.
    traced, (abstract, *outputs) = jax.make_jaxpr(init, return_shape=True)(key)
    of_variables = len(jax.tree.leaves(abstract))
    wanted = [place >= of_variables for place in range(len(traced.jaxpr.outvars))]
    # Without the forward pass, and all else that no result depends on.
    needed, _ = partial_eval.dce_jaxpr(traced.jaxpr, wanted, instantiate=True)
    program = core.ClosedJaxpr(needed, traced.consts)
    fills = {place: draw.fill for place, draw in draws.items()}
    return Initialization(abstract, fills, program, jax.tree.structure(outputs))


def abstract_variables(model: nn.Module, image_size: int) -> dict[str, Any]:
    """Returns shapes and dtypes of what `init_variables` would, with nothing computed."""
    return trace_initialization(model, image_size).abstract


def init_variables(model: nn.Module, key: jax.Array, image_size: int) -> dict[str, Any]:
    """Returns a network's variables before training; see `Initialization.draw`."""
    return trace_initialization(model, image_size).draw(key)


def _on_cpu() -> contextlib.AbstractContextManager:
    try:
        return jax.default_device(jax.local_devices(backend='cpu')[0])
    except RuntimeError:  # JAX_PLATFORMS=cuda or tpu leaves no CPU to compute on.
        return contextlib.nullcontext()
