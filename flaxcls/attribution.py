"""Where in an image a network sees its class: maps of heat over images.

All take images uint8 [N, S, S, 3] as `Classifier.prepare` makes them, and explain the logit of one
class for each: of `classes`, int [N], or, if None, of the network's own answers.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxcls.classifier import Classifier
from flaxcls.errors import UserError
from flaxcls.models.activations import apply_and_record

# Images at once where gradients are taken: what is kept for them is much more than an answer needs.
GRADIENT_BATCH = 16


def grad_cam(
    classifier: Classifier,
    images: np.ndarray,
    classes: np.ndarray | None = None,
    *,
    layer: str = 'feature_map',
) -> np.ndarray:
    """Returns float32 [N, h, w]: the channels of a layer, weighted by how they move the logit.

    Selvaraju et al., Grad-CAM, arXiv:1610.02391, equations 1 and 2: a channel's weight is the mean
    of the logit's gradient over the pixels of its map, and what is negative in the sum is zero.

    Args:
      classifier: the network.
      images: see above.
      classes: see above.
      layer: whose output is a map [h, w, channels], see `apply_and_record`.

    Raises:
      UserError: there is no such layer or class, its output is no map, or the images do not fit.
    """
    classes = require_classes(classifier, images, classes)
    function = classifier.compiled(_make_grad_cam, layer)
    return classifier.in_batches(function, images, classes, size=GRADIENT_BATCH)


def _make_grad_cam(classifier: Classifier, layer: str) -> Callable[..., jax.Array]:
    def heat(variables: Any, images: jax.Array, classes: jax.Array) -> jax.Array:
        images = classifier.normalize(images)

        def score(shift: jax.Array | None) -> tuple[jax.Array, jax.Array]:
            shifts = None if shift is None else {layer: shift}
            logits, outputs = apply_and_record(
                classifier.model, variables, images, [layer], shifts=shifts
            )
            return choose(logits, classes).sum(), outputs[layer]

        shape = jax.eval_shape(lambda: score(None)[1])
        require_map(layer, shape.shape)
        gradient, output = jax.grad(score, has_aux=True)(jnp.zeros(shape.shape, shape.dtype))
        weights = jnp.mean(gradient.astype(jnp.float32), axis=(1, 2))
        return jax.nn.relu(jnp.einsum('bhwc,bc->bhw', output.astype(jnp.float32), weights))

    return heat


def choose(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """Returns the logit [B] of each image's class."""
    return jnp.take_along_axis(logits, classes[:, None], axis=-1)[:, 0]


def require_map(layer: str, shape: tuple[int, ...]) -> None:
    """Raises UserError unless the output of a layer has pixels."""
    if len(shape) != 4:
        raise UserError(
            f'layer {layer!r} puts out {list(shape[1:])} for an image, which is no map; choose an '
            "earlier one, such as 'feature_map'."
        )


def require_images(classifier: Classifier, images: np.ndarray) -> None:
    """Raises UserError unless the images are as the network takes them."""
    size = classifier.config.data.image_size
    fits = images.ndim == 4 and len(images) and images.shape[1:] == (size, size, 3)
    if images.dtype != np.uint8 or not fits:
        raise UserError(
            f'images of {images.dtype} {list(images.shape)} are not uint8 [N, {size}, {size}, 3]; '
            "prepare them with a Classifier that was loaded with crops='center'."
        )


def require_classes(
    classifier: Classifier, images: np.ndarray, classes: np.ndarray | None
) -> np.ndarray:
    """Returns int32 [N], the classes or else the answers, after a look at both arguments.

    Raises:
      UserError: the images do not fit, or the classes.
    """
    require_images(classifier, images)
    if classes is None:
        return np.argmax(classifier.classify(images), axis=-1).astype(np.int32)
    classes, count = np.asarray(classes), len(classifier.class_names)
    whole = np.issubdtype(classes.dtype, np.integer)
    if not whole or classes.shape != (len(images),) or not (classes % count == classes).all():
        raise UserError(
            f'classes={classes.tolist()} are not a number from 0 to {count - 1} for each of '
            f'{len(images)} images.'
        )
    return classes.astype(np.int32)
