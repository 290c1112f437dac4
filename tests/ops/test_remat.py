"""Recomputation: the same step, from less that is kept."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcls.config.config_dict import default_config, from_json, to_json
from flaxcls.config.files import load_config
from flaxcls.training import parallel
from flaxcls.training.setup import build_setup, resolve
from tests.helpers.unpack import create_layout, make_train_step

NETWORKS = {
    'alexnet_bn': {'data.image_size': 224, 'model.width_multiplier': 0.02},
    'vgg16': {'data.image_size': 28, 'model.width_multiplier': 0.05, 'model.stage_sizes': (1, 1)},
    'mobilenet_v2': {'model.width_multiplier': 0.25, 'model.stage_sizes': (1, 2)},
    'resnet20': {
        'model.width_multiplier': 0.25,
        'model.stage_sizes': (2,),
        'model.stochastic_depth_rate': 0.5,
    },
    'resnet50': {'model.width_multiplier': 0.05, 'model.stage_sizes': (1,)},
    'resnet50_v2': {'model.width_multiplier': 0.05, 'model.stage_sizes': (1,)},
    'densenet121': {
        'model.growth_rate': 4,
        'model.block_sizes': (2, 1),
        'model.dropout_rate': 0.2,
    },
    'densenet_40_12': {'model.growth_rate': 4, 'model.block_sizes': (2,)},
}


def _config(name, **options):
    options = {
        'model.name': name, 'data.source': 'synthetic:32', 'batch_size': 8,
        'data.image_size': 8, 'batch_norm.group_size': 4,
    } | NETWORKS[name] | options  # fmt: skip
    return load_config(None, options)


def _setup(name, **options):
    config = _config(name, **options)
    return resolve(config, build_setup(config)), build_setup(config)


def _train_step(config, setup, remat, **options):
    config = config.copy_and_resolve_references()
    config.model.remat = remat
    return make_train_step(config, setup.model.clone(**options), setup.optimizer)


def _state_after_a_step(config, setup, remat):
    """In float64, so that another order of the same sums does not show."""
    layout = create_layout(config, jax.devices()[:1])
    step = parallel.parallelize_train_step(
        _train_step(config, setup, remat, dtype='float64'), layout
    )
    widen = lambda x: x.astype('float64') if jnp.issubdtype(x.dtype, jnp.floating) else x  # noqa: E731
    state = jax.tree.map(widen, setup._replace(layout=layout).init_state())
    rng = np.random.default_rng(0)
    size = setup.eval_crop.size
    images = rng.integers(0, 256, (8, size, size, 3), np.uint8)
    batch = {'image': images, 'label': rng.integers(0, 10, 8).astype(np.int32)}
    return step(state, next(parallel.microbatches_to_devices(iter([batch]), layout)))


# Of XLA, and of the kernels where these are built.
PRODUCTS = (
    'conv_general_dilated',
    'dot_general',
    'flaxcls_convolution',
    'flaxcls_convolution_input_gradient',
    'flaxcls_convolution_kernel_gradient',
    'flaxcls_multiply',
)


@pytest.mark.parametrize('name', NETWORKS)
def test_gradients_and_statistics_are_those_without(name):
    config, setup = _setup(name)
    with jax.enable_x64(True):
        expected = _state_after_a_step(config, setup, 'none')
        for remat in ('norm', 'block'):
            got = _state_after_a_step(config, setup, remat)
            for leaves in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
                np.testing.assert_allclose(*leaves, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('name', NETWORKS)
def test_convolutions_are_made_anew_within_blocks_alone_and_nothing_is_sent_twice(name):
    """With groups over two devices, whose statistics are a message."""
    config, setup = _setup(name, **{'batch_norm.group_size': None})
    batch = {'image': jnp.zeros((1, 8, *[setup.eval_crop.size] * 2, 3), jnp.uint8)}
    batch['label'] = jnp.zeros((1, 8), jnp.int32)
    counts = {}
    for remat in ('none', 'norm', 'block'):
        trace = jax.make_jaxpr(_train_step(config, setup, remat), axis_env=[(parallel.AXIS, 2)])
        counts[remat] = _count(trace(setup.abstract_state(), batch).jaxpr)
    costly = {remat: sum(n[product] for product in PRODUCTS) for remat, n in counts.items()}
    assert costly['none'] == costly['norm'] < costly['block']
    assert len({n['psum'] for n in counts.values()}) == 1


def _count(jaxpr):
    """Returns how often each primitive comes, in all that is called too."""
    found = collections.Counter()
    for eqn in jaxpr.eqns:
        found[eqn.primitive.name] += 1
        for inner in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')
        ):
            inner = getattr(inner, 'jaxpr', inner)
            if hasattr(inner, 'eqns'):
                found += _count(inner)
    return found


def test_runs_of_the_time_when_it_was_a_switch_resume():
    text = to_json(default_config())
    for old, new in (('false', 'none'), ('true', 'norm')):
        config = from_json(text.replace('"remat": "none"', f'"remat": {old}'))
        assert config.model.remat == new
