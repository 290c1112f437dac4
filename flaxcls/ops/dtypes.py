"""Precision of sums and statistics."""

from typing import Any

import jax.numpy as jnp


def at_least_float32(dtype: Any) -> Any:
    """Returns the dtype for sums and statistics: float32, or float64 where that is computed in."""
    return jnp.promote_types(dtype, jnp.float32)
