"""What the layers of a trained network hold: filters, maps, features and who is near in them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxcls.errors import UserError
from flaxcls.explaining.attribution import require_images, require_map
from flaxcls.inference.classifier import Classifier
from flaxcls.models.intermediates import apply_with_intermediates


def first_filters(classifier: Classifier) -> np.ndarray:
    """Returns the first convolution's weights, float32 [F, k, k, 3] in 0..1.

    Each filter is scaled by its own largest weight; grey, 0.5, is none.
    """
    params = classifier.variables['params']
    name = next(name for name in ('stem', 'stem1', 'conv1', 'conv1_1') if name in params)
    filters = np.moveaxis(np.asarray(params[name]['kernel'], np.float32), -1, 0)
    largest = np.abs(filters).max(axis=(1, 2, 3), keepdims=True)
    return 0.5 + 0.5 * filters / np.maximum(largest, np.finfo(np.float32).tiny)


def feature_maps(classifier: Classifier, images: np.ndarray, layer: str) -> np.ndarray:
    """Returns what a layer makes of images uint8 [N, S, S, 3], float32 [N, h, w, C].

    Raises:
      UserError: there is no such layer, its output is not a map, or the images do not fit.
    """
    outputs = layer_outputs(classifier, images, layer)
    require_map(layer, outputs.shape)
    return outputs


def layer_outputs(classifier: Classifier, images: np.ndarray, layer: str) -> np.ndarray:
    """Returns the output of any layer, float32 [N, ...]."""
    require_images(classifier, images)
    return classifier.in_batches(classifier.compiled(_make_outputs, layer), images)


def _make_outputs(classifier: Classifier, layer: str) -> Callable[..., jax.Array]:
    def outputs(variables: Any, images: jax.Array) -> jax.Array:
        images = classifier.normalize(images)
        recorded = apply_with_intermediates(classifier.model, variables, images, [layer])[1]
        return recorded[layer].astype(jnp.float32)

    return outputs


def nearest_neighbours(features: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """Returns the indices [M, k] of the features most like each query, the most alike first.

    Args:
      features: [N, F].
      queries: [M, F].
      k: how many; up to N.

    Raises:
      UserError: there are not as many features.
    """
    if not 1 <= k <= len(features):
        raise UserError(f'k={k} neighbours are not among {len(features)}; choose 1 to that many.')
    # scikit-learn's NearestNeighbors orders equal ones at random, as of images given twice.
    features, queries = (
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (features, queries)
    )
    return np.argsort(-(queries @ features.T), axis=1, kind='stable')[:, :k]
