"""Initial weights, drawn by NumPy on the host.

XLA takes about half a second to compile one random draw for CPU, and a network has dozens of
kernel shapes: a jitted `init` took 10 s for ResNet-20. A host draw takes nothing to compile, costs
60 million normals a second or two, and gives the same numbers on every platform.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Initializer = Callable[..., jax.Array]
zeros, ones = nn.initializers.zeros, nn.initializers.ones


def normal(std: float) -> Initializer:
    """Returns an initializer drawing from N(0, std**2)."""
    return _on_host(lambda rng, shape: std * rng.standard_normal(shape, np.float32))


def uniform_fan_in(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Draws from +-1 / sqrt(fan in), as the reference implementations do for the classifier."""
    bound = 1 / math.sqrt(math.prod(shape[:-1]))
    draw = _on_host(lambda rng, shape: bound * (2 * rng.random(shape, np.float32) - 1))
    return draw(key, shape, dtype)


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


def _on_host(sample: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]) -> Initializer:
    def initializer(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        def draw(key_data: jax.Array) -> np.ndarray:
            rng = np.random.Generator(np.random.Philox(key=np.asarray(key_data, np.uint64)))
            return sample(rng, shape).astype(np.float32)

        result = jax.ShapeDtypeStruct(shape, jnp.float32)
        return jax.pure_callback(draw, result, jax.random.key_data(key)).astype(dtype)

    return initializer
