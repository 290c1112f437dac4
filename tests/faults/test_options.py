"""Options at the ends of their ranges, alone and together: a run can begin, or is refused."""

import math

import jax
import numpy as np
import pytest

import flaxcls
from flaxcls.config.options import OPTIONS
from flaxcls.errors import UserError
from flaxcls.planning.compiled import abstract_inputs
from flaxcls.training.setup import build_setup
from tests.helpers.configs import ALEXNET, DENSENET, TINY
from tests.helpers.faults import draws

NETWORKS = [
    TINY | {'model.stage_sizes': '1', 'model.width_multiplier': 0.125, 'batch_size': 32},
    TINY | ALEXNET | {'batch_size': 32},
    TINY | DENSENET | {'batch_size': 32},
]
# What would only make the network large, or needs files.
LEFT_OUT = {
    'extensions', 'init_from', 'trackers', 'model.name', 'model.num_classes', 'model.stage_sizes',
    'model.block_sizes', 'model.growth_rate', 'model.width_multiplier', 'data.source',
    'data.data_dir', 'data.image_size', 'data.train_image_size',
}  # fmt: skip
TEXTS = {
    'freeze': ['', '*', 'no layer', 'stem*'],
    'optimizer.rules': ['', '*:lr=0', 'head:lr=inf', 'head:decay=-1', 'head', ':'],
    'data.train_split': ['train', ''],
    'data.val_split': ['val', 'train[20:10]'],
    'schedule.milestones': ['()', '0', '1e9', '-1', '1,1', 'inf'],
    'augment.color_jitter': ['()', '0,0,0,0', '1', '1e30,1,1,1', 'nan,0,0,0', 'inf,0,0,0'],
    'data.mean': ['0,0,0', '1e30,0,0', 'inf,0,0', 'nan,0,0', '0,0'],
    'data.std': ['0,1,1', '1e-30,1,1', '1e999,1,1', 'nan,1,1', '-1,1,1'],
}


def edges(key):
    """Returns values at and beside the ends of an option's range, and beyond them."""
    row = OPTIONS[key]
    if row.choices:
        return [*row.choices, 'none of them']
    if key in TEXTS:
        return TEXTS[key]
    if row.kind is bool:
        return [True, False]
    bounds = [b for b in (row.at_least, row.above, row.below, row.at_most) if b is not None]
    if row.kind is int:
        return sorted({0, 1, -1, 10**12, *(b + d for b in bounds for d in (-1, 0, 1))})
    around = [f(b, d) for b in bounds for d in (-math.inf, math.inf) for f in (math.nextafter,)]
    return [0.0, -1.0, 1e-30, 1e30, math.inf, -math.inf, math.nan, *bounds, *around]


def _begin(options):
    """Traces what a run would compile; returns whether it was refused."""
    try:
        setup = build_setup(flaxcls.load_config(None, options))
    except UserError as error:
        assert '\n' not in str(error)
        return True
    # The inputs are laid out as jit takes them, and pmap's step is the same program.
    setup = setup._replace(layout=setup.layout._replace(mode='jit'))
    jax.eval_shape(setup.make_train_step(), *abstract_inputs(setup))
    for step in (0, setup.total_steps - 1):
        assert math.isfinite(float(setup.learning_rate.schedule(step)))
    return False


@pytest.mark.parametrize('momentum', [0, 0.9])
@pytest.mark.parametrize('nesterov', [False, True])
@pytest.mark.parametrize('name', OPTIONS['optimizer.name'].choices)
def test_every_optimizer_with_and_without_momentum(name, nesterov, momentum):
    options = {'optimizer.momentum': momentum, 'optimizer.nesterov': nesterov}
    refused = _begin(NETWORKS[0] | options | {'optimizer.name': name})
    assert refused == (name in ('sgd', 'lars', 'muon') and nesterov and not momentum)


@pytest.mark.parametrize('compression', [0.003, 0.3, 1.0])
def test_a_transition_that_keeps_no_channel_is_refused(compression):
    assert _begin(NETWORKS[2] | {'model.compression': compression}) == (compression < 0.01)


@pytest.mark.parametrize(('key', 'value'), [
    ('batch_norm.eps', 'inf'), ('data.std', '1e999,1,1'), ('data.mean', '1e999,0,0'),
    ('optimizer.eps', 'inf'), ('schedule.milestones', '1e999'),
])  # fmt: skip
def test_what_is_no_number_to_compute_with_is_refused(key, value):
    adamw = {'optimizer.name': 'adamw'} if key == 'optimizer.eps' else {}
    assert _begin(NETWORKS[0] | adamw | {key: value})


def test_options_at_their_edges_together(seed):
    rng = np.random.default_rng(seed)
    keys = [key for key in OPTIONS if key not in LEFT_OUT]
    for _ in range(draws(8)):
        options = dict(NETWORKS[rng.integers(len(NETWORKS))])
        for key in rng.choice(keys, rng.integers(1, 4), replace=False):
            values = edges(key)
            options[str(key)] = values[rng.integers(len(values))]
        try:
            _begin(options)
        except Exception as error:
            raise AssertionError(f'seed {seed}: {options}') from error
