"""Schedules at their turning points, and the optimizer against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcls.config import load_config
from flaxcls.errors import UserError
from flaxcls.models import create_model
from flaxcls.optim import kernels_only, make_optimizer, make_schedule, peak_learning_rate
from flaxcls.validation import validate

PER_EPOCH = 10


def _schedule(**overrides):
    overrides = {f'schedule.{key}': value for key, value in overrides.items()}
    return make_schedule(
        load_config(None, {'num_epochs': 8, 'optimizer.learning_rate': 0.4} | overrides), PER_EPOCH
    )


@pytest.mark.parametrize('warmup', [0, 1, 5])
@pytest.mark.parametrize('name', ['cosine', 'step', 'constant'])
def test_schedule_is_its_stated_formula_at_every_step(name, warmup):
    milestones = (5, 6.5, 90) if name == 'step' else ()
    schedule = _schedule(name=name, warmup_epochs=warmup / PER_EPOCH, milestones=milestones)
    total = 8 * PER_EPOCH
    for step in range(total):
        if step < warmup:
            expected = 0.4 * (step + 1) / warmup
        elif name == 'cosine':
            expected = 0.2 * (1 + np.cos(np.pi * (step - warmup) / (total - warmup)))
        else:
            expected = 0.4 * 0.1 ** sum(step >= PER_EPOCH * m for m in milestones)
        np.testing.assert_allclose(schedule(step), expected, rtol=1e-4, atol=1e-7)
        assert schedule(step) > 0


@pytest.mark.parametrize(
    'overrides',
    [
        {'warmup_epochs': 0.6},
        {'warmup_epochs': 0.9, 'name': 'constant'},
        {'name': 'step', 'milestones': (0.1, 0.2)},
    ],
    ids=str,
)
def test_schedule_with_too_few_steps_is_refused_with_its_key(overrides):
    overrides = {f'schedule.{key}': value for key, value in overrides.items()}
    config = load_config(None, overrides | {'num_epochs': 1})
    validate(config)
    make_schedule(config, PER_EPOCH)
    with pytest.raises(UserError, match=r'config\.schedule\.(warmup_epochs|milestones)='):
        make_schedule(config, steps_per_epoch=1)


def test_linear_scaling_follows_the_batch_size_of_the_overrides():
    for batch_size in (64, 256, 1024):
        overrides = {'batch_size': batch_size, 'optimizer.base_batch_size': 256}
        assert peak_learning_rate(load_config(None, overrides)) == 0.1 * batch_size / 256
        assert peak_learning_rate(load_config(None, {'batch_size': batch_size})) == 0.1


@pytest.mark.parametrize('decay_all', [False, True])
@pytest.mark.parametrize('nesterov', [False, True])
def test_sgd_is_torchs_formula_and_decays_kernels_only_by_default(decay_all, nesterov):
    config = load_config(
        None,
        {
            'optimizer.decay_all': decay_all,
            'optimizer.nesterov': nesterov,
            'optimizer.weight_decay': 0.3,
            'schedule.name': 'constant',
        },
    )
    params = {'conv': {'kernel': jnp.array([1.0]), 'bias': jnp.array([1.0])}}
    optimizer = make_optimizer(config, make_schedule(config, PER_EPOCH))
    state = optimizer.init(params)
    value = {'kernel': 1.0, 'bias': 1.0}
    velocity = {'kernel': 0.0, 'bias': 0.0}
    for gradient in (0.5, -0.2, 0.7):
        gradients = jax.tree.map(lambda p, g=gradient: jnp.full_like(p, g), params)
        updates, state = optimizer.update(gradients, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        for name in value:
            decayed = gradient + (0.3 * value[name] if decay_all or name == 'kernel' else 0)
            velocity[name] = 0.9 * velocity[name] + decayed
            step = decayed + 0.9 * velocity[name] if nesterov else velocity[name]
            value[name] -= 0.1 * step
            np.testing.assert_allclose(params['conv'][name], value[name], rtol=1e-5)


@pytest.mark.parametrize('name', ['alexnet_bn', 'resnet50', 'densenet121'])
def test_only_weights_of_convolutions_and_dense_layers_decay(name):
    model = create_model(name)
    images = jnp.zeros((1, 64, 64, 3))
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))['params']
    mask = kernels_only(params)
    for decays, leaf in zip(jax.tree.leaves(mask), jax.tree.leaves(params), strict=True):
        assert decays == (leaf.ndim > 1)
