"""A trained network as one pure function of images alone, as it is exported.

Normalisation is inside, BatchNorm is folded into the convolutions beside it, and everything is
computed in float32.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxcls.augment.transforms import make_normalize
from flaxcls.augment.tta import make_tta_crops
from flaxcls.inference.fold_batch_norm import fold_batch_norm
from flaxcls.models.densenet import DenseNet
from flaxcls.models.intermediates import apply_with_intermediates
from flaxcls.models.resnet import ResNet
from flaxcls.ops.forms import reference
from flaxcls.training.from_config import EvalImages

Inference = Callable[[jax.Array], dict[str, jax.Array]]


def make_inference(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: EvalImages,
    *,
    temperature: float = 1.0,
    with_maps: bool = False,
) -> Inference:
    """Returns images uint8 [N, S, S, 3] -> {'probabilities': float32 [N, C]}, for any N.

    Args:
      model: the network; it is computed in float32.
      variables: {'params': ..., 'batch_stats': ...}; they become constants of the function.
      images: as the run evaluates them; S is images.crop.side.
      temperature: divides the logits.
      with_maps: adds 'maps', float32 [N, h, w, C], the class-activation map of each class (see
        `attribution.cam`), if the network has them and there is one crop of an image.
    """
    crop = images.crop
    model, normalize = model.clone(dtype=jnp.float32), make_normalize(images.mean, images.std)
    variables = jax.tree.map(np.asarray, dict(variables))
    folded = fold_batch_norm(model, variables, crop.size)
    crops_of = make_tta_crops(crop.tta, crop.size)
    once = crop.tta == 'center'
    layers = ['feature_map'] if with_maps and once and isinstance(model, ResNet | DenseNet) else []

    def apply(images: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        with reference(), nn.intercept_methods(folded.intercept):
            return apply_with_intermediates(model, folded.variables, normalize(images), layers)

    def infer(images: jax.Array) -> dict[str, jax.Array]:
        if not once:  # As in steps.make_classify.
            of_crops = [jax.nn.softmax(apply(crop)[0]) for crop in crops_of(images)]
            logits = jnp.log(sum(of_crops) / len(of_crops))
            return {'probabilities': jax.nn.softmax(logits / temperature)}
        logits, found = apply(images)
        outputs = {'probabilities': jax.nn.softmax(logits / temperature)}
        if layers:
            weights = variables['params']['head']['dense']['kernel']
            outputs['maps'] = jnp.einsum('bhwf,fc->bhwc', found['feature_map'], weights)
        return outputs

    return infer
