"""Where networks see their classes, on networks and images whose answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY

import flaxcls
from flaxcls.attribution import grad_cam
from flaxcls.classifier import Classifier
from flaxcls.errors import UserError
from flaxcls.models import model_from_config
from flaxcls.models.initialization import init_variables

NETWORKS = {
    'resnet': {'model.name': 'resnet20', 'model.stage_sizes': '1,1'},
    'densenet': {
        'model.name': 'densenet_40_12',
        'model.block_sizes': '2,2',
        'model.growth_rate': 4,
        'model.width_multiplier': None,
        'model.stage_sizes': None,
    },
    'alexnet': {
        'model.name': 'alexnet',
        'model.width_multiplier': 0.05,
        'model.stage_sizes': None,
        'data.image_size': 64,
    },
}


def _random_classifier(name, size=12):
    """A network of random weights whose BatchNorm has seen something."""
    options = TINY | {'model.num_classes': 5, 'data.image_size': size} | NETWORKS[name]
    config = flaxcls.load_config(None, options)
    variables = init_variables(model_from_config(config), jax.random.key(0), size)
    rng = np.random.default_rng(1)
    variables['batch_stats'] = jax.tree.map(
        lambda x: jnp.asarray(rng.uniform(0.5, 2, x.shape), x.dtype), variables['batch_stats']
    )
    return Classifier(config, variables, 'abcde')


def _random_images(classifier, count):
    rng = np.random.default_rng(2)
    side = classifier.side
    return rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize('name', NETWORKS)
def test_grad_cam_shapes(name):
    classifier = _random_classifier(name, 64 if name == 'alexnet' else 12)
    images = _random_images(classifier, 5)
    heat = grad_cam(classifier, images)
    print(heat.shape, heat.max())
    assert heat.dtype == np.float32 and len(heat) == 5 and (heat >= 0).all()
    with pytest.raises(UserError, match='is no map'):
        grad_cam(classifier, images, layer='features')
