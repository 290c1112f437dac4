"""Schedules at their turning points, and the optimizer against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxcls.config.files import load_config
from flaxcls.config.validation import validate
from flaxcls.errors import UserError
from flaxcls.models.init import abstract_variables
from flaxcls.models.registry import create_model
from tests.helpers.unpack import make_optimizer, make_schedule, param_groups, peak_learning_rate

PER_EPOCH = 10


def _schedule(**overrides):
    overrides = {f'schedule.{key}': value for key, value in overrides.items()}
    return make_schedule(
        load_config(None, {'num_epochs': 8, 'optimizer.learning_rate': 0.4} | overrides), PER_EPOCH
    )


def _constant(step, warmup, total, options):
    return 1


def _steps(step, warmup, total, options):
    return options['decay_factor'] ** sum(step >= PER_EPOCH * m for m in options['milestones'])


def _cosine(step, warmup, total, options):
    fall = (1 + np.cos(np.pi * (step - warmup) / (total - warmup))) / 2
    return options['final'] + (1 - options['final']) * fall


def _polynomial(step, warmup, total, options):
    fall = (1 - (step - warmup) / (total - warmup)) ** options['power']
    return options['final'] + (1 - options['final']) * fall


SCHEDULES = [
    ('constant', _constant, {}),
    ('step', _steps, {'milestones': (5, 6.5, 90), 'decay_factor': 0.2}),
    ('cosine', _cosine, {'final': 0.0}),
    ('cosine', _cosine, {'final': 0.05}),
    ('polynomial', _polynomial, {'final': 0.0, 'power': 1.0}),
    ('polynomial', _polynomial, {'final': 0.1, 'power': 2.0}),
]


@pytest.mark.parametrize('warmup_start', [None, 0.25])
@pytest.mark.parametrize('warmup', [0, 1, 5])
@pytest.mark.parametrize(('name', 'formula', 'options'), SCHEDULES)
def test_schedule_is_its_stated_formula_at_every_step(name, formula, options, warmup, warmup_start):
    schedule = _schedule(
        name=name, warmup_epochs=warmup / PER_EPOCH, warmup_start=warmup_start, **options
    )
    total = 8 * PER_EPOCH
    for step in range(total):
        start = warmup_start or 1 / max(warmup, 1)
        if step < warmup:
            expected = start + (1 - start) * step / max(warmup - 1, 1)
        else:
            expected = formula(step, warmup, total, options)
        np.testing.assert_allclose(schedule(step), 0.4 * expected, rtol=1e-4, atol=1e-7)
        assert schedule(step) > 0


@pytest.mark.parametrize(('warmup_start', 'final'), [(None, 0.0), (0.1, 0.01)])
def test_one_cycle_rises_and_falls_along_cosines(warmup_start, final):
    schedule = _schedule(
        name='one_cycle', warmup_epochs=2.4, warmup_start=warmup_start, final=final
    )
    total, warmup, start = 8 * PER_EPOCH, 24, warmup_start or 1 / 25
    for step in range(total):
        if step < warmup:
            expected = start + (1 - start) * (1 - np.cos(np.pi * step / warmup)) / 2
        else:
            expected = _cosine(step, warmup, total, {'final': final})
        np.testing.assert_allclose(schedule(step), 0.4 * expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    'overrides',
    [
        {'warmup_epochs': 0.6},
        {'warmup_epochs': 0.9, 'name': 'constant'},
        {'name': 'step', 'milestones': (0.1, 0.2)},
        {'name': 'one_cycle', 'warmup_epochs': 0.3},
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
    optimizer = make_optimizer(config, make_schedule(config, PER_EPOCH), params)
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


def _small_params():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {
        'stem': {'kernel': draw(3, 3, 2, 4), 'bias': draw(4)},
        'bn': {'scale': draw(4), 'bias': draw(4)},
        'head': {'kernel': draw(4, 3), 'bias': draw(3)},
    }


def _updates_of(optimizer, params, scale=1.0):
    """Three updates with the gradients of sum(x ** 2) times a number."""
    state, all_updates = optimizer.init(params), []
    for _ in range(3):
        gradients = jax.tree.map(lambda x: 2 * scale * x, params)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        all_updates.append(updates)
    return all_updates


def _assert_same(got, expected):
    for leaves in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
        np.testing.assert_allclose(*leaves, rtol=1e-5, atol=1e-9)


def _muon_matrices(params):
    numbers = jax.tree.map(lambda x: None, params)
    numbers['stem']['kernel'] = optax.contrib.MuonDimensionNumbers((0, 1, 2), 3)
    return numbers


def _decayed_sgd(rate, decay):
    return optax.chain(optax.add_decayed_weights(decay), optax.sgd(rate, 0.9, nesterov=True))


OPTAXS_OWN = {
    'sgd': ({}, _decayed_sgd),
    'lars': (
        {'trust_coefficient': 0.02},
        lambda rate, decay: optax.lars(rate, decay, trust_coefficient=0.02, nesterov=True),
    ),
    'lamb': ({'beta1': 0.8}, lambda rate, decay: optax.lamb(rate, b1=0.8, weight_decay=decay)),
    'adamw': (
        {'beta2': 0.95, 'eps': 1e-4},
        lambda rate, decay: optax.adamw(rate, b2=0.95, eps=1e-4, weight_decay=decay),
    ),
    'lion': ({}, lambda rate, decay: optax.lion(rate, weight_decay=decay)),
    'muon': (
        {},
        lambda rate, decay: optax.contrib.muon(
            rate, beta=0.9, weight_decay=decay, adam_weight_decay=decay, consistent_rms=0.2,
            muon_weight_dimension_numbers=_muon_matrices,
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', OPTAXS_OWN)
def test_optimizers_are_optaxs_own(name):
    options, own = OPTAXS_OWN[name]
    options = options | {'name': name, 'weight_decay': 0.3, 'decay_all': True}
    config = load_config(None, {f'optimizer.{key}': value for key, value in options.items()})
    validate(config)
    schedule, params = make_schedule(config, PER_EPOCH), _small_params()
    updates = _updates_of(make_optimizer(config, schedule, params), params)
    _assert_same(updates, _updates_of(own(schedule, 0.3), params))


def test_every_optimizer_is_compared_with_optaxs():
    with pytest.raises(UserError, match=f'choose from {", ".join(OPTAXS_OWN)}'):
        validate(load_config(None, {'optimizer.name': 'zzz'}))


@pytest.mark.parametrize('name', OPTAXS_OWN)
def test_only_kernels_decay_by_default(name):
    params = _small_params()
    updates = [
        _updates_of(_make(params, name=name, weight_decay=decay), params)[0] for decay in (0.3, 0.0)
    ]
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), *updates)
    for path, decayed in jax.tree_util.tree_leaves_with_path(moved):
        assert decayed == (path[-1].key == 'kernel'), path


def _make(params, **options):
    config = load_config(None, {f'optimizer.{key}': value for key, value in options.items()})
    return make_optimizer(config, make_schedule(config, PER_EPOCH), params)


@pytest.mark.parametrize('name', ['lars', 'lamb'])
def test_what_is_not_decayed_is_not_adapted_to_its_norm(name):
    """A trust ratio makes the first update as long as the weights times a constant."""
    params = _small_params()
    optimizer = _make(params, name=name, learning_rate=1.0, weight_decay=0.0, nesterov=False)
    updates = _updates_of(optimizer, params)[0]
    ratios = jax.tree.map(lambda u, p: jnp.linalg.norm(u) / jnp.linalg.norm(p), updates, params)
    expected = {'lars': 0.001, 'lamb': 1.0}[name]
    for path, ratio in jax.tree_util.tree_leaves_with_path(ratios):
        assert (abs(ratio - expected) < 1e-4 * expected) == (path[-1].key == 'kernel'), path


@pytest.mark.parametrize('name', OPTAXS_OWN)
def test_rules_multiply_rate_and_decay_and_the_later_one_counts(name):
    params = _small_params()
    rules = 'head: lr=10; *:decay=0; stem/kernel:lr=0.5,decay=2; stem/kernel:lr=0'
    some = {'name': name, 'learning_rate': 1e-3, 'weight_decay': 0.1}
    got = _updates_of(_make(params, rules=rules, **some), params)[0]
    assert not jnp.any(got['stem']['kernel'])
    plain = _updates_of(_make(params, rules='*:decay=0', **some), params)[0]
    _assert_same(got['head'], jax.tree.map(lambda x: 10 * x, plain['head']))
    _assert_same([got['bn'], got['stem']['bias']], [plain['bn'], plain['stem']['bias']])
    twice = _updates_of(_make(params, **some | {'weight_decay': 0.2}), params)[0]
    ruled = _updates_of(_make(params, rules='stem/kernel:decay=2', **some), params)[0]
    _assert_same(ruled['stem'], twice['stem'])


def test_gradients_are_clipped_to_their_global_norm():
    params = _small_params()
    make = lambda **more: _make(params, momentum=0, nesterov=False, weight_decay=0, **more)  # noqa: E731
    plain = _updates_of(make(), params)[0]
    norm = 10 * optax.global_norm(plain)  # Of the gradients, at a rate of 0.1.
    clipped = _updates_of(make(clip_norm=0.5), params)[0]
    _assert_same(clipped, jax.tree.map(lambda x: x * 0.5 / norm, plain))
    _assert_same(_updates_of(make(clip_norm=float(norm) + 1), params)[0], plain)


@pytest.mark.parametrize(
    ('rules', 'says'),
    [
        ('head', "'head' is not a rule"),
        ('head:lr=fast', 'is not a rule such as'),
        ('head:lr=-1', 'is not a rule'),
        ('head:rate=3', 'is not a rule'),
        ('haed:lr=3', "'haed' fits no layer .did you mean head"),
    ],
)
def test_rules_that_cannot_be_followed_are_refused(rules, says):
    with pytest.raises(UserError, match=says) as caught:
        _make(_small_params(), rules=rules)
    assert 'config.optimizer.rules' in str(caught.value)


@pytest.mark.parametrize('name', ['alexnet_bn', 'resnet50', 'densenet121'])
def test_only_weights_of_convolutions_and_dense_layers_decay(name):
    params = abstract_variables(create_model(name), 64)['params']
    got = param_groups(load_config(None, {}), params)
    got = jax.tree.leaves(got, is_leaf=lambda x: isinstance(x, tuple))
    for treatment, leaf in zip(got, jax.tree.leaves(params), strict=True):
        assert treatment == (1, leaf.ndim > 1)
