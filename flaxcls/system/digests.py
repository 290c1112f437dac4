"""Digests of arrays by name, of their tree, and of JSON: what was saved is known again by them."""

import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import xxhash


def names_of(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by their names, such as params.stem.kernel."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator='.'): leaf for path, leaf in leaves}


def make_digests(state: Any, metrics: Mapping[str, float] | None) -> dict[str, Any]:
    """Returns what is saved with a state, as JSON, to be held against it later."""
    values = {name: digest_of(leaf) for name, leaf in names_of(state).items()}
    return {'values': values, 'tree': digest_of_tree(state), 'metrics': digest_of_json(metrics)}


def digest_of(leaf: Any) -> str:
    array = np.asarray(leaf)
    digest = xxhash.xxh3_128(f'{array.dtype} {array.shape}\n'.encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def digest_of_tree(tree: Any) -> str:
    leaves = names_of(tree).items()
    return digest_of_json({name: [str(leaf.dtype), list(leaf.shape)] for name, leaf in leaves})


def digest_of_json(value: Any) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(value, sort_keys=True).encode())
