"""Initial weights, drawn by NumPy on the host.

XLA takes about half a second to compile one random draw for CPU, and a network has dozens of
kernel shapes: a jitted `init` took 10 s for ResNet-20. A host draw takes nothing to compile, costs
60 million normals a second or two, and gives the same numbers on every platform.
"""

import contextlib
import contextvars
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Initializer = Callable[..., jax.Array]
Fill = Callable[[np.random.Generator, np.ndarray], None]  # Writes float32 values in place.

# Values of a stream; what is larger goes on with another, which another thread can draw.
_STREAM = 2**26


class Draw(NamedTuple):
    """An initial weight that was asked for, and is yet to be drawn."""

    key: jax.Array | None  # None: it needs none.
    fill: Fill
    stand_in: jax.Array  # The zeros that were returned in its place.


_RECORD: contextvars.ContextVar[list[Draw] | None] = contextvars.ContextVar('draws', default=None)


@contextlib.contextmanager
def recording() -> Iterator[list[Draw]]:
    """Within it, initializers draw nothing and return zeros; the list tells what was asked for."""
    draws = []
    token = _RECORD.set(draws)
    try:
        yield draws
    finally:
        _RECORD.reset(token)


def draw_all(fills: Sequence[tuple[Fill, np.ndarray, tuple[int, ...]]]) -> list[np.ndarray]:
    """Returns float32 values for each (fill, key data uint32 [2], shape), drawn on all cores."""
    values = [np.empty(math.prod(shape), np.float32) for _, _, shape in fills]
    with futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        streams = [
            pool.submit(fill, generator, part)
            for (fill, key_data, _), flat in zip(fills, values, strict=True)
            for generator, part in _streams(key_data, flat)
        ]
    for stream in streams:
        stream.result()
    return [flat.reshape(shape) for flat, (_, _, shape) in zip(values, fills, strict=True)]


def _streams(key_data: np.ndarray, flat: np.ndarray) -> Iterator:
    """Yields (generator, the part of `flat` that it fills)."""
    bits = np.random.Philox(key=np.asarray(key_data, np.uint64))
    for start in range(0, flat.size, _STREAM):
        yield np.random.Generator(bits), flat[start : start + _STREAM]
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
