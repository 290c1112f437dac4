"""BatchNorm's statistics: against NumPy, under masks and accumulation; averages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxcls
from flaxcls.config.files import load_config
from flaxcls.config.workdir import load_stored_config
from flaxcls.errors import UserError
from flaxcls.models.batch_norm import BatchNorm
from flaxcls.ops.batch_norm import compute_moments, merge_moments, unbiased
from flaxcls.training import parallel
from flaxcls.training.ema import update_ema
from flaxcls.training.precise_bn import compute_precise_bn, precise_bn_workdir
from flaxcls.training.restore import evaluate_workdir, open_run
from flaxcls.training.setup import build_setup, resolve
from tests.helpers.configs import TINY
from tests.helpers.unpack import (
    create_layout,
    load_state,
    make_eval_batches,
    make_train_batches,
    make_train_step,
)


def _values(shape=(6, 5, 4, 3, 2), mean=1000.0):
    return np.random.default_rng(0).normal(mean, 1, shape)


@pytest.mark.parametrize('masked', [False, True])
def test_moments_and_merged_moments_are_numpys(masked):
    """Of groups with a mean far from zero, some of them with no example that counts."""
    values = _values().astype(np.float32)
    mask = np.random.default_rng(1).random(values.shape[:2]) < 0.5 if masked else None
    if masked:
        mask[2] = False
    got = compute_moments(jnp.array(values), None if mask is None else mask[..., None, None, None])
    mask = np.ones(values.shape[:2], bool) if mask is None else mask
    for index, group in enumerate(values):
        kept = group[mask[index]].astype(np.float64)
        assert got.count[index] == kept[..., 0].size
        if len(kept):
            np.testing.assert_allclose(got.mean[index], kept.mean((0, 1, 2)), rtol=1e-6)
            np.testing.assert_allclose(got.var[index], kept.var((0, 1, 2)), rtol=1e-4)
    everything = values[mask].astype(np.float64)
    total = merge_moments(got)
    np.testing.assert_allclose(total.mean, everything.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(total.var, everything.var((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(unbiased(total), everything.var((0, 1, 2), ddof=1), rtol=1e-4)


@pytest.mark.parametrize('span', [2, 4])
@pytest.mark.parametrize(('mean', 'known', 'rtol'), [(1000, 999, 1e-4), (30, 0, 1e-3)])
def test_groups_over_devices_have_numpys_moments_and_gradients(
    span, mean, known, rtol, all_devices
):
    """Far from zero once the running mean is near, and at the first step, when it is zero."""
    devices, features = 4, 3
    x = _values((8, 4, 4, features), mean)
    x[..., 2] = mean  # A channel that is constant.
    weights = np.random.default_rng(1).normal(size=x.shape)
    layer = BatchNorm(axis_name='d', group_size=8 // devices * span)
    variables = {
        'params': {'scale': jnp.ones(features), 'bias': jnp.zeros(features)},
        'batch_stats': {'mean': jnp.full(features, float(known)), 'var': jnp.ones(features)},
    }

    @functools.partial(jax.pmap, axis_name='d', devices=all_devices[:devices])
    def run(x, weights):
        normal = lambda x: layer.apply(variables, x, train=True, mutable=['batch_stats'])[0]  # noqa: E731
        return normal(x), jax.grad(lambda x: (normal(x) * weights).sum())(x)

    shared = lambda v: jnp.array(v, jnp.float32).reshape(devices, -1, *v.shape[1:])  # noqa: E731
    got = [np.asarray(value).reshape(x.shape) for value in run(shared(x), shared(weights))]
    for rows in np.split(np.arange(8), devices // span):
        group, weight = np.float32(x[rows]).astype(np.float64), weights[rows]
        centred = group - group.mean((0, 1, 2))
        factor = 1 / np.sqrt((centred**2).mean((0, 1, 2)) + layer.eps)
        normal = centred * factor
        gradient = factor * (
            weight - weight.mean((0, 1, 2)) - normal * (weight * normal).mean((0, 1, 2))
        )
        assert all(np.isfinite(value[rows]).all() for value in got)
        for value, expected in zip(got, (normal, gradient), strict=True):
            scale = np.abs(expected[..., :2]).max()
            np.testing.assert_allclose(
                value[rows][..., :2], expected[..., :2], rtol=0, atol=rtol * scale
            )


def test_masked_examples_change_nothing_of_the_others():
    layer = BatchNorm(
        collect_statistics=True, group_size=4, mask=jnp.array([1, 1, 1, 0, 1, 0, 0, 0], bool)
    )
    x = _values((8, 3, 3, 2)).astype(np.float32)
    variables = BatchNorm().init(jax.random.key(0), x, train=False)
    run = lambda x: layer.apply(variables, x, train=False, mutable=['batch_stats'])  # noqa: E731
    output, updates = run(x)
    changed = np.where(np.array(layer.mask)[:, None, None, None], x, 7.0)
    changed_output, changed_updates = run(changed)
    for got, expected in zip(*map(jax.tree.leaves, (updates, changed_updates)), strict=True):
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(changed_output[:3], output[:3])
    np.testing.assert_array_equal(changed_output[4], output[4])
    first = x[:3].astype(np.float64)
    expected = (first - first.mean((0, 1, 2))) / np.sqrt(first.var((0, 1, 2)) + 1e-5)
    np.testing.assert_allclose(output[:3], expected, atol=2e-3)


def _numpy_oracle(config, setup, variables):
    """PreciseBN of a network's first BatchNorm, whose input is one convolution of the images."""
    images = np.concatenate(
        [b['image'][b['mask']] for b in make_eval_batches(config, setup.dataset.train)()]
    ).astype(np.float64)
    mean, std = (255 * np.array(v, np.float64) for v in (config.data.mean, config.data.std))
    images = np.pad((images - mean) / std, [(0, 0), (1, 1), (1, 1), (0, 0)])
    kernel = np.asarray(variables['params']['stem']['kernel'], np.float64)
    size = setup.eval_crop.size
    return sum(
        images[:, i : i + size, j : j + size] @ kernel[i, j] for i in range(3) for j in range(3)
    )


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A short run with averaged weights and dropout of blocks: its workdir and state."""
    workdir = tmp_path_factory.mktemp('averaged') / 'run'
    options = {'ema.decay': 0.9, 'num_epochs': 1, 'model.stochastic_depth_rate': 0.5}
    state, _ = flaxcls.train_and_evaluate(load_config(None, TINY | options), workdir)
    return workdir, state


def test_precise_bn_is_numpys_over_every_training_image(finished):
    workdir, _ = finished
    setup, state = open_run(workdir, training_too=True), load_state(workdir)
    assert len(setup.dataset.train) % setup.batch_size  # The last batch is masked.
    raw = state.replace(ema={}).eval_variables
    stem = _numpy_oracle(load_stored_config(workdir), setup, raw)
    got = compute_precise_bn(setup, raw)['batch_stats']['bn_stem']
    np.testing.assert_allclose(got['mean'], stem.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    # Near enough to distinguish the unbiased variance from the biased one.
    np.testing.assert_allclose(got['var'], stem.var((0, 1, 2), ddof=1), rtol=4e-6)
    # The next layer sees what the first has normalised with the statistics of each group alone.
    norm = state.params['bn_stem']
    groups = np.split(stem, range(64, len(stem), 64))
    normal = [(g - g.mean((0, 1, 2))) / np.sqrt(g.var((0, 1, 2)) + 1e-5) for g in groups]
    x = np.maximum(np.concatenate(normal) * np.asarray(norm['scale']) + np.asarray(norm['bias']), 0)
    kernel = np.asarray(state.params['stage1_block1']['conv1']['kernel'], np.float64)
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    inner = sum(padded[:, i : i + 8, j : j + 8] @ kernel[i, j] for i in range(3) for j in range(3))
    got = compute_precise_bn(setup, raw)['batch_stats']['stage1_block1']['bn1']
    np.testing.assert_allclose(got['mean'], inner.mean((0, 1, 2)), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(got['var'], inner.var((0, 1, 2), ddof=1), rtol=1e-3)


def test_run_with_precise_bn_is_evaluated_like_any_other(finished, tmp_path):
    workdir, state = finished
    before, after = precise_bn_workdir(workdir, tmp_path / 'out')
    assert before == {k: v for k, v in evaluate_workdir(workdir).items() if k != 'step'}
    assert after == {k: v for k, v in evaluate_workdir(tmp_path / 'out').items() if k != 'step'}
    recomputed = load_state(tmp_path / 'out')
    for got, averaged in zip(
        *map(jax.tree.leaves, (recomputed.params, state.ema['params'])), strict=True
    ):
        np.testing.assert_array_equal(got, averaged)
    with pytest.raises(UserError, match='has a run already'):
        precise_bn_workdir(workdir, tmp_path / 'out')


def test_what_has_no_batch_norm_has_no_precise_bn():
    setup = build_setup(load_config(None, {'model.name': 'alexnet', 'model.width_multiplier': 0.02,
                                       'data.image_size': 63, 'batch_size': 8}))  # fmt: skip
    with pytest.raises(UserError, match='alexnet has no BatchNorm'):
        compute_precise_bn(setup, setup.init_state().eval_variables)


def _steps(count=3, **options):
    """Returns the states after each of the first steps, in float64, on one device."""
    config = load_config(None, TINY | {'batch_size': 32, 'batch_norm.group_size': 8} | options)
    setup = build_setup(config)
    layout = create_layout(config, jax.devices()[:1])
    model = setup.model.clone(dtype='float64')
    widen = lambda x: x.astype('float64') if jnp.issubdtype(x.dtype, jnp.floating) else x  # noqa: E731
    step = parallel.parallelize_train_step(
        make_train_step(resolve(config, setup), model, setup.optimizer), layout
    )
    state = jax.tree.map(widen, setup._replace(layout=layout).init_state())
    states = []
    batches = make_train_batches(config, setup.dataset.train)(0)
    for _, batch in zip(
        range(count), parallel.microbatches_to_devices(batches, layout), strict=False
    ):
        state, _ = step(state, batch)
        states.append(jax.device_get(state))
    return states


def test_accumulated_steps_are_the_same_ones():
    with jax.enable_x64(True):
        expected, got = _steps(), _steps(**{'parallel.accumulation_steps': 4})
    for leaves in zip(*map(jax.tree.leaves, (got[-1], expected[-1])), strict=True):
        np.testing.assert_allclose(*leaves, rtol=1e-9, atol=1e-12)


def test_averages_are_those_of_a_plain_loop():
    with jax.enable_x64(True):
        states = _steps(4, **{'ema.decay': 0.5})
        setup = build_setup(load_config(None, TINY))
        mean = jax.tree.map(
            lambda x: np.asarray(x, np.float64), jax.device_get(setup.init_state().params)
        )
        for step, state in enumerate(states):
            decay = min(0.5, (1 + step) / (10 + step))
            mean = jax.tree.map(lambda m, p, d=decay: d * m + (1 - d) * p, mean, state.params)
    for got, expected in zip(*map(jax.tree.leaves, (states[-1].ema['params'], mean)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9)
    assert states[-1].eval_variables is states[-1].ema
    assert update_ema({}, {}, 0, 0.5) == {}
