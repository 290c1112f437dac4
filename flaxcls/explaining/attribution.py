"""Where in an image a network sees its class: maps of heat over images.

All take images uint8 [N, S, S, 3] as `Classifier.preprocess` makes them, and explain the logit of
one class for each: of `classes`, int [N], or, if None, of the predicted one. Wrong images or
classes raise UserError.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxcls.errors import UserError
from flaxcls.inference.classifier import Classifier
from flaxcls.models.densenet import DenseNet
from flaxcls.models.intermediates import apply_with_intermediates
from flaxcls.models.resnet import ResNet

# Images at once where gradients are taken: these keep much more than a prediction needs.
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
      classifier: of a trained run.
      images: uint8 [N, S, S, 3].
      classes: int [N], whose logits are explained; None: the predicted ones.
      layer: whose output is a map [h, w, channels], see `apply_with_intermediates`.

    Raises:
      UserError: there is no such layer, or its output is not a map.
    """
    classes = require_classes(classifier, images, classes)
    function = classifier.compiled(_make_grad_cam, layer)
    return classifier.in_batches(function, images, classes, size=GRADIENT_BATCH)


def _make_grad_cam(classifier: Classifier, layer: str) -> Callable[..., jax.Array]:
    def heat(variables: Any, images: jax.Array, classes: jax.Array) -> jax.Array:
        images = classifier.normalize(images)

        def score(perturbation: jax.Array | None) -> tuple[jax.Array, jax.Array]:
            perturbations = None if perturbation is None else {layer: perturbation}
            logits, outputs = apply_with_intermediates(
                classifier.model, variables, images, [layer], perturbations=perturbations
            )
            return choose(logits, classes).sum(), outputs[layer]

        shape = jax.eval_shape(lambda: score(None)[1])
        require_map(layer, shape.shape)
        gradient, output = jax.grad(score, has_aux=True)(jnp.zeros(shape.shape, shape.dtype))
        weights = jnp.mean(gradient.astype(jnp.float32), axis=(1, 2))
        return jax.nn.relu(jnp.einsum('bhwc,bc->bhw', output.astype(jnp.float32), weights))

    return heat


def cam(
    classifier: Classifier, images: np.ndarray, classes: np.ndarray | None = None
) -> np.ndarray:
    """Returns float32 [N, h, w]: the feature map's channels, weighted as the classifier does.

    Zhou et al., Learning Deep Features for Discriminative Localization, arXiv:1512.04150, equation
    2. The mean of a map is the logit, but for the bias.

    Raises:
      UserError: the classifier is not one dense layer over the means of the map.
    """
    if not isinstance(classifier.model, ResNet | DenseNet):
        raise UserError(
            f'cam needs a classifier of one layer over the means of the feature map, which '
            f'{classifier.model_name} has not; take grad_cam.'
        )
    classes = require_classes(classifier, images, classes)
    return classifier.in_batches(classifier.compiled(_make_cam), images, classes)


def _make_cam(classifier: Classifier) -> Callable[..., jax.Array]:
    layer = 'feature_map'

    def heat(variables: Any, images: jax.Array, classes: jax.Array) -> jax.Array:
        images = classifier.normalize(images)
        _, outputs = apply_with_intermediates(classifier.model, variables, images, [layer])
        weights = variables['params']['head']['dense']['kernel'][:, classes]
        return jnp.einsum('bhwc,cb->bhw', outputs[layer].astype(jnp.float32), weights)

    return heat


def integrated_gradients(
    classifier: Classifier,
    images: np.ndarray,
    classes: np.ndarray | None = None,
    *,
    steps: int = 32,
) -> np.ndarray:
    """Returns float32 [N, S, S, 3]: what each value of a pixel has added to the logit.

    Sundararajan, Taly, Yan, Axiomatic Attribution for Deep Networks, arXiv:1703.01365, equations 1
    and 3: the gradient's mean along the straight line from black to the image, times the image.
    The sum over an image is its logit minus that of black, up to the error of `steps` points, which
    are taken in the middles of as many equal pieces of the line.
    """
    _require_positive('steps', steps)
    classes = require_classes(classifier, images, classes)
    gradient = classifier.compiled(_make_gradient)
    total = np.zeros(images.shape, np.float32)
    for step in range(steps):
        points = images * np.float32((step + 0.5) / steps)
        total += classifier.in_batches(gradient, points, classes, size=GRADIENT_BATCH)
    return total / steps * images


def smooth_grad(
    classifier: Classifier,
    images: np.ndarray,
    classes: np.ndarray | None = None,
    *,
    samples: int = 16,
    noise: float = 0.15,
    seed: int = 0,
) -> np.ndarray:
    """Returns float32 [N, S, S, 3]: the logit's gradient, averaged over noisy copies of an image.

    Smilkov et al., SmoothGrad, arXiv:1706.03825, section 2. All images meet the same noise, so that
    the map of one does not depend on the others.

    Args:
      classifier, images, classes: as for `grad_cam`.
      samples: noisy copies.
      noise: their deviation, as a share of the image's range from its least to its largest value.
      seed: from which the noise is drawn.
    """
    _require_positive('samples', samples)
    classes = require_classes(classifier, images, classes)
    gradient = classifier.compiled(_make_gradient)
    axes, rng = (1, 2, 3), np.random.default_rng(seed)
    deviation = noise * np.ptp(images.astype(np.float32), axis=axes, keepdims=True)
    total = np.zeros(images.shape, np.float32)
    for _ in range(samples):
        points = images + deviation * rng.standard_normal(images.shape[1:], np.float32)
        total += classifier.in_batches(gradient, points, classes, size=GRADIENT_BATCH)
    return total / samples


def _make_gradient(classifier: Classifier) -> Callable[..., jax.Array]:
    """Returns the gradient of the classes' logits by the pixels, which may be any float32."""

    def gradient(variables: Any, images: jax.Array, classes: jax.Array) -> jax.Array:
        def score(images: jax.Array) -> jax.Array:
            logits = classifier.model.apply(variables, classifier.normalize(images), train=False)
            return choose(logits, classes).sum()

        return jax.grad(score)(images)

    return gradient


def occlusion(
    classifier: Classifier,
    images: np.ndarray,
    classes: np.ndarray | None = None,
    *,
    window: int | None = None,
    stride: int | None = None,
) -> np.ndarray:
    """Returns float32 [N, h, w]: how much the logit falls when a window of the image is covered.

    Zeiler, Fergus, Visualizing and Understanding Convolutional Networks, arXiv:1311.2901, section
    4.2, with the logit in place of the probability, which hardly moves for a confident prediction.

    Args:
      classifier, images, classes: as for `grad_cam`.
      window: side in pixels of what is covered with the mean colour; None: three strides.
      stride: side of the cells of the map, in whose middles the windows lie; None: S / 16. h and w
        are S / stride, rounded up.
    """
    size = images.shape[1]
    stride = max(1, size // 16) if stride is None else stride
    window = 3 * stride if window is None else window
    _require_positive('stride', stride)
    _require_positive('window', window)
    classes = require_classes(classifier, images, classes)
    cells = -(-size // stride)
    firsts = np.arange(cells, dtype=np.int32) * stride + (stride - window) // 2
    corners = np.stack(np.meshgrid(firsts, firsts, indexing='ij'), axis=-1).reshape(-1, 2)
    drop = classifier.compiled(_make_drop, window)
    heat = [
        classifier.in_batches(
            drop,
            np.broadcast_to(image, (len(corners), *image.shape)),
            np.full(len(corners), label),
            corners,
        )
        for image, label in zip(images, classes, strict=True)
    ]
    whole = classifier.in_batches(drop, images, classes, np.full((len(images), 2), size, np.int32))
    return (np.stack(heat) - whole[:, None]).reshape(-1, cells, cells)


def _make_drop(classifier: Classifier, window: int) -> Callable[..., jax.Array]:
    """Returns minus the classes' logits of images that are covered below and right of corners."""

    def drop(variables: Any, images: jax.Array, classes: jax.Array, corners: jax.Array):
        pixels = jnp.arange(images.shape[1])
        inside = (pixels >= corners[..., None]) & (pixels < corners[..., None] + window)
        covered = inside[:, 0, :, None, None] & inside[:, 1, None, :, None]
        # Zero is the mean colour.
        images = jnp.where(covered, 0, classifier.normalize(images))
        return -choose(classifier.model.apply(variables, images, train=False), classes)

    return drop


def _require_positive(name: str, value: int) -> None:
    if value < 1:
        raise UserError(f'{name}={value} is not a positive number.')


def choose(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """Returns the logit [B] of each image's class."""
    return jnp.take_along_axis(logits, classes[:, None], axis=-1)[:, 0]


def require_map(layer: str, shape: tuple[int, ...]) -> None:
    """Raises UserError unless the output of a layer has pixels."""
    if len(shape) != 4:
        raise UserError(
            f'layer {layer!r} puts out {list(shape[1:])} for an image, which is not a map; choose '
            "an earlier one, such as 'feature_map'."
        )


def require_images(classifier: Classifier, images: np.ndarray) -> None:
    """Raises UserError unless the images are as the network takes them."""
    size = classifier.images.crop.size
    fits = images.ndim == 4 and len(images) and images.shape[1:] == (size, size, 3)
    if images.dtype != np.uint8 or not fits:
        raise UserError(
            f'images of {images.dtype} {list(images.shape)} are not uint8 [N, {size}, {size}, 3]; '
            "prepare them with a Classifier that was loaded with crops='center'."
        )


def require_classes(
    classifier: Classifier, images: np.ndarray, classes: np.ndarray | None
) -> np.ndarray:
    """Returns int32 [N], the classes or else the predictions, after a look at both arguments.

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
