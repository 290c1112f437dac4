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
from ml_collections import ConfigDict

from flaxcls.augment.transforms import make_normalize, make_tta_crops
from flaxcls.config.config_dict import set_option
from flaxcls.inference.fold_batch_norm import fold_batch_norm
from flaxcls.models import from_config
from flaxcls.models.densenet import DenseNet
from flaxcls.models.intermediates import apply_with_intermediates
from flaxcls.models.resnet import ResNet
from flaxcls.ops.reference import reference_ops

Inference = Callable[[jax.Array], dict[str, jax.Array]]


def make_inference(
    config: ConfigDict,
    variables: Mapping[str, Any],
    *,
    temperature: float = 1.0,
    with_maps: bool = False,
) -> Inference:
    """Returns images uint8 [N, S, S, 3] -> {'probabilities': float32 [N, C]}, for any N.

    Args:
      config: of the run; images are looked at as it evaluates them, S as in `make_eval_cut`.
      variables: {'params': ..., 'batch_stats': ...}; they become constants of the function.
      temperature: divides the logits.
      with_maps: adds 'maps', float32 [N, h, w, C], the class-activation map of each class (see
        `attribution.cam`), if the network has them and images are looked at once.
    """
    config = config.copy_and_resolve_references()
    set_option(config, 'model.dtype', 'float32')
    set_option(config, 'model.remat', 'none')
    model, normalize = from_config.model_from_config(config), make_normalize(config)
    variables = jax.tree.map(np.asarray, dict(variables))
    folded = fold_batch_norm(model, variables, config.data.image_size)
    tta_crops_of = make_tta_crops(config)
    once = config.data.eval_crops == 'center'
    layers = ['feature_map'] if with_maps and once and isinstance(model, ResNet | DenseNet) else []

    def apply(images: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        with reference_ops(), nn.intercept_methods(folded.intercept):
            return apply_with_intermediates(model, folded.variables, normalize(images), layers)

    def infer(images: jax.Array) -> dict[str, jax.Array]:
        if not once:  # As in steps.make_classify.
            of_views = [jax.nn.softmax(apply(view)[0]) for view in tta_crops_of(images)]
            logits = jnp.log(sum(of_views) / len(of_views))
            return {'probabilities': jax.nn.softmax(logits / temperature)}
        logits, found = apply(images)
        outputs = {'probabilities': jax.nn.softmax(logits / temperature)}
        if layers:
            weights = variables['params']['head']['dense']['kernel']
            outputs['maps'] = jnp.einsum('bhwf,fc->bhwc', found['feature_map'], weights)
        return outputs

    return infer
