"""Local response normalisation (LRN), AlexNet's."""

import jax
import jax.numpy as jnp

from flaxcls.ops.dtypes import at_least_float32


@jax.named_scope('local_response_norm')  # By which models/trace.py finds it.
def local_response_norm(
    x: jax.Array,
    *,
    size: int = 5,
    k: float = 2.0,
    alpha: float = 1e-4,
    beta: float = 0.75,
    mean: bool = False,
) -> jax.Array:
    """Divides x [B, H, W, C] by (k + alpha * sum of squares of `size` neighbour channels)**beta.

    As printed in the AlexNet paper, section 3.3. With `mean`, alpha is divided by `size`, as Caffe
    and torch do. Computed in float32; returns x's dtype.
    """
    alpha = alpha / size if mean else alpha
    squares = jnp.square(x.astype(at_least_float32(x.dtype)))
    padded = jnp.pad(squares, [(0, 0)] * 3 + [(size // 2, (size - 1) // 2)])
    total = sum(padded[..., i : i + x.shape[-1]] for i in range(size))
    return (x * (k + alpha * total) ** -beta).astype(x.dtype)
