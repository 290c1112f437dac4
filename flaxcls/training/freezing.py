"""Frozen layers: kept out of gradients and optimizer."""

from collections.abc import Sequence
from typing import Any

import jax

from flaxcls.errors import UserError
from flaxcls.models.patterns import matches
from flaxcls.system.text import did_you_mean


def split_frozen(params: Any, patterns: Sequence[str]) -> tuple[Any, Any]:
    """Returns (trained, frozen): two trees like `params`, with None for what is in the other.

    Only the first is differentiated and given to the optimizer: the second is never touched. With
    optax.freeze, which is given all gradients, those of frozen layers would be summed over the
    devices and clipped with the others.
    """
    is_frozen = lambda path, _: matches('/'.join(key.key for key in path), patterns)  # noqa: E731
    frozen = jax.tree_util.tree_map_with_path(is_frozen, params)
    return (
        jax.tree.map(lambda leaf, out: None if out else leaf, params, frozen),
        jax.tree.map(lambda leaf, out: leaf if out else None, params, frozen),
    )


def merge_frozen(trained: Any, frozen: Any) -> Any:
    """Returns the tree that `split_frozen` took apart."""
    pick = lambda left, right: right if left is None else left  # noqa: E731
    return jax.tree.map(pick, trained, frozen, is_leaf=lambda leaf: leaf is None)


def require_trained(params: Any, patterns: Sequence[str]) -> None:
    """Raises UserError if a pattern of config.freeze fits no layer, or all of them are frozen."""
    for pattern in patterns:
        require_match(params, 'freeze', pattern)
    if not jax.tree.leaves(split_frozen(params, patterns)[0]):
        raise UserError(f'config.freeze={",".join(patterns)} leaves nothing to train.')


def require_match(params: Any, key: str, pattern: str) -> None:
    """Raises UserError, suggesting the closest layer, if `pattern` of config.KEY fits none."""
    if not jax.tree.leaves(split_frozen(params, [pattern])[1]):
        layers = ', '.join(list(params)[:8])
        remedy = did_you_mean(pattern, list(params)) or f'; the first ones are {layers}'
        raise UserError(f'config.{key}: {pattern!r} fits no layer{remedy}.')
