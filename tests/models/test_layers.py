"""Layers against NumPy, and the properties they are used for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcls.models import init
from flaxcls.models.batch_norm import BatchNorm
from flaxcls.models.layers import (
    Conv,
    Dropout,
    StochasticDepth,
    adaptive_avg_pool,
    avg_pool,
    max_pool,
    relu6,
)
from flaxcls.models.patterns import matches
from flaxcls.ops.batch_norm import in_one_reading, mean_and_var, normalize
from flaxcls.ops.convolution import convolve, reference_convolve
from flaxcls.ops.local_response_norm import local_response_norm
from flaxcls.ops.pooling import xla_gradient


def _noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _windows(x, size, strides, padding, value=0.0):
    """Yields (row, column, window [B, size, size, C]) of a padded image, by plain loops."""
    pads = [(0, 0), (padding, padding), (padding, padding), (0, 0)]
    x = np.pad(x, pads, constant_values=value)
    for i, top in enumerate(range(0, x.shape[1] - size + 1, strides)):
        for j, left in enumerate(range(0, x.shape[2] - size + 1, strides)):
            yield i, j, x[:, top : top + size, left : left + size]


@pytest.mark.parametrize(
    ('size', 'strides', 'padding', 'groups'),
    [
        (1, 1, 0, 1),
        (1, 2, 0, 1),
        (3, 1, 1, 1),
        (3, 2, 1, 1),
        (5, 1, 2, 2),
        (7, 2, 3, 1),
        (11, 4, 2, 1),
    ],
)
@pytest.mark.parametrize('shape', [(12, 12), (13, 16)])
def test_conv_pads_evenly_as_torch_does(size, strides, padding, groups, shape):
    x, kernel = _noise(2, *shape, 4), _noise(size, size, 4 // groups, 6, seed=1)
    conv = Conv(6, size, strides, padding, groups=groups)
    got = conv.apply({'params': {'kernel': kernel}}, x)
    for i, j, meter in _windows(x, size, strides, padding):
        for group in range(groups):
            channels = slice(group * 4 // groups, (group + 1) * 4 // groups)
            features = slice(group * 6 // groups, (group + 1) * 6 // groups)
            expected = np.einsum('bhwc,hwco->bo', meter[..., channels], kernel[..., features])
            np.testing.assert_allclose(got[:, i, j, features], expected, rtol=2e-4, atol=2e-4)
    assert got.shape[1:3] == (i + 1, j + 1)


@pytest.mark.parametrize(('channels', 'features'), [(3, 8), (8, 8), (16, 9), (16, 4), (65, 65)])
@pytest.mark.parametrize(('size', 'strides'), [(1, 1), (1, 2), (3, 1), (3, 2)])
def test_convolutions_and_their_gradients_are_xlas_own(channels, features, size, strides):
    x, kernel = _noise(2, 5, 7, channels), _noise(size, size, channels, features, seed=1)
    options = {'strides': strides, 'padding': size // 2, 'groups': 1}
    ours, native = (
        jax.jit(jax.value_and_grad(lambda x, k, f=f: jnp.sum(jnp.sin(f(x, k, **options))), (0, 1)))(
            x, kernel
        )
        for f in (convolve, reference_convolve)
    )
    for ours_value, native_value in zip(*map(jax.tree.leaves, (ours, native)), strict=True):
        atol = 5e-5 * np.abs(native_value).max()
        np.testing.assert_allclose(ours_value, native_value, rtol=1e-4, atol=atol)


@pytest.mark.parametrize('group_size', [2, 4, 8, None])
def test_batch_norm_is_its_formula_in_each_group(group_size):
    x = 3 * _noise(8, 3, 5, 4) + 2
    norm = BatchNorm(group_size=group_size, momentum=0.8)
    variables = norm.init(jax.random.key(0), x, train=False)
    got, updates = norm.apply(variables, x, train=True, mutable=['batch_stats'])
    groups = x.astype(np.float64).reshape(8 // (group_size or 8), -1, 3, 5, 4)
    mean = groups.mean((1, 2, 3), keepdims=True)
    var = groups.var((1, 2, 3), keepdims=True)
    expected = (groups - mean) / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(got, expected.reshape(x.shape), rtol=1e-4, atol=1e-5)
    stats = updates['batch_stats']
    np.testing.assert_allclose(stats['mean'], 0.2 * mean.mean((0, 1, 2, 3)), rtol=1e-5)
    unbiased = groups.var((1, 2, 3), ddof=1).mean(0)  # As torch keeps it.
    np.testing.assert_allclose(stats['var'], 0.8 + 0.2 * unbiased, rtol=1e-5)


@pytest.mark.parametrize('mean_shape', [(2, 1, 1, 1, 3), (3,)])
def test_batch_norms_gradients_are_those_of_its_formula(mean_shape):
    """In float64, where jax works them out from the formula itself."""
    with jax.enable_x64(True):
        x = 2 * _noise(2, 4, 3, 5, 3).astype(np.float64) + 1
        mean, factor, bias = _noise(*mean_shape), _noise(*mean_shape, seed=1), _noise(3, seed=2)
        vectors = [value.astype(np.float64) for value in (mean, factor, bias)]
        _assert_same_gradients(
            lambda x, *vectors: normalize((x,), *vectors),
            lambda x, mean, factor, bias: (x - mean) * factor + bias,
            x,
            *vectors,
        )
        shift = vectors[2]
        examples = (1, 2, 3)
        plain = lambda x: (x.mean(examples), x.var(examples))  # noqa: E731
        _assert_same_gradients(mean_and_var, plain, x)
        _assert_same_gradients(lambda x: mean_and_var(x, shift), plain, x)
        _assert_same_gradients(lambda x: in_one_reading(x, shift), plain, x)


def _assert_same_gradients(ours, plain, *inputs):
    """Values, and gradients of a sum that weighs every output by another number."""

    def weighed(function, *inputs):
        outputs = jax.tree.leaves(function(*inputs))
        return sum((jnp.sin(jnp.arange(value.size)) * value.ravel()).sum() for value in outputs)

    positions = tuple(range(len(inputs)))
    got, expected = (
        jax.value_and_grad(lambda *x, f=f: weighed(f, *x), positions)(*inputs)
        for f in (ours, plain)
    )
    for a, b in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_batch_norm_evaluates_with_running_statistics():
    x = _noise(2, 3, 3, 4)
    norm = BatchNorm(eps=0.5)
    variables = {
        'params': {'scale': _noise(4, seed=1), 'bias': _noise(4, seed=2)},
        'batch_stats': {'mean': _noise(4, seed=3), 'var': _noise(4, seed=4) ** 2},
    }
    got = norm.apply(variables, x, train=False)
    (scale, bias), (mean, var) = (tuple(part.values()) for part in variables.values())
    np.testing.assert_allclose(
        got, (x - mean) / np.sqrt(var + 0.5) * scale + bias, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_batch_norm_keeps_a_small_variance_beside_a_large_mean(dtype):
    x = 1000 + _noise(64, 8, 8, 2)
    norm = BatchNorm(dtype=dtype, momentum=0.0)
    variables = norm.init(jax.random.key(0), x, train=False)
    got, updates = norm.apply(variables, x, train=True, mutable=['batch_stats'])
    assert got.dtype == dtype
    assert updates['batch_stats']['var'].dtype == jnp.float32
    np.testing.assert_allclose(updates['batch_stats']['var'], x.var((0, 1, 2)), rtol=1e-2)
    np.testing.assert_allclose(got.astype(jnp.float32).std((0, 1, 2)), 1, rtol=2e-2)


def test_dropout_draws_by_example_key_and_keeps_the_mean():
    layer = Dropout(0.25)
    x = jnp.ones((6, 4096))
    keys = jax.random.split(jax.random.key(0), 6)
    dropped = layer.apply({}, x, train=True, example_keys=keys)
    assert set(np.unique(dropped)) == {0, np.float32(1 / 0.75)}
    np.testing.assert_allclose(dropped.mean(), 1, atol=0.02)
    # The same examples in another batch, in another order, lose the same units.
    order = np.array([4, 0, 2])
    again = layer.apply({}, x[order], train=True, example_keys=keys[order])
    np.testing.assert_array_equal(again, dropped[order])
    assert not (dropped[0] == dropped[1]).all()
    np.testing.assert_array_equal(layer.apply({}, x, train=False), x)
    by_linen = layer.apply({}, x, train=True, rngs={'dropout': jax.random.key(0)})
    np.testing.assert_allclose(by_linen.mean(), 1, atol=0.02)


def test_stochastic_depth_drops_whole_examples_by_their_keys_and_keeps_the_mean():
    layer = StochasticDepth(0.25)
    x = jnp.ones((2048, 2, 2, 3))
    keys = jax.random.split(jax.random.key(0), 2048)
    dropped = layer.apply({}, x, train=True, example_keys=keys)
    assert (dropped == dropped[:, :1, :1, :1]).all()
    assert set(np.unique(dropped)) == {0, np.float32(1 / 0.75)}
    np.testing.assert_allclose(dropped.mean(), 1, atol=0.04)
    order = np.array([4, 0, 2])
    again = layer.apply({}, x[order], train=True, example_keys=keys[order])
    np.testing.assert_array_equal(again, dropped[order])
    np.testing.assert_array_equal(layer.apply({}, x, train=False), x)


@pytest.mark.parametrize('shape', [(1, 1), (2, 3), (7, 8), (57, 57)])
def test_partial_windows_are_averaged_over_the_pixels_they_have(shape):
    x = _noise(2, *shape, 3)
    got = avg_pool(x, 2, 2, partial_windows=True)
    assert got.shape[1:3] == tuple(-(-size // 2) for size in shape)
    for i in range(got.shape[1]):
        for j in range(got.shape[2]):
            meter = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            np.testing.assert_allclose(got[:, i, j], meter.mean((1, 2)), rtol=1e-5, atol=1e-6)


def test_frozen_batch_norm_uses_its_running_statistics_and_keeps_them():
    x = _noise(4, 3, 3, 2)
    variables = BatchNorm().init(jax.random.key(0), x, train=False)
    variables['batch_stats']['mean'] += 1
    for frozen in ((), ('*',)):
        norm = BatchNorm(frozen=frozen)
        got, updates = norm.apply(variables, x, train=True, mutable=['batch_stats'])
        before, after = variables['batch_stats'], updates['batch_stats']
        same = jax.tree.map(lambda a, b: (a == b).all(), before, after)
        evaluated = norm.apply(variables, x, train=False)
        assert bool((got == evaluated).all()) == bool(frozen)
        assert all(jax.tree.leaves(same)) == bool(frozen)


def test_patterns_fit_a_path_and_all_that_is_below_it():
    assert matches('stage1_block1/bn1', ['stage1*'])
    assert matches('stage1_block1/bn1/scale', ['stem', 'stage?_block1'])
    assert matches('stage1_block1/bn1', ['*/bn1'])
    assert not matches('stage1_block1/bn1', ['stage1', 'bn1', 'stage2*'])
    assert not matches('stem', [])


@pytest.mark.parametrize('mean', [False, True])
@pytest.mark.parametrize('size', [1, 4, 5])
def test_local_response_norm_is_the_papers_or_caffes(size, mean):
    x = 20 * _noise(2, 2, 2, 9)
    got = local_response_norm(x, size=size, k=2.0, alpha=0.3, beta=0.75, mean=mean)
    alpha = 0.3 / size if mean else 0.3
    for c in range(9):  # Section 3.3: the sum runs over max(0, i - n/2) .. min(N - 1, i + n/2).
        neighbours = x[..., max(0, c - size // 2) : c + (size - 1) // 2 + 1]
        expected = x[..., c] / (2 + alpha * (neighbours**2).sum(-1)) ** 0.75
        np.testing.assert_allclose(got[..., c], expected, rtol=1e-4)


@pytest.mark.parametrize(('size', 'strides', 'padding'), [(3, 2, 0), (3, 2, 1), (2, 2, 0)])
def test_pools_are_the_maximum_and_the_mean_of_windows(size, strides, padding):
    x = _noise(2, 7, 9, 3) - 5
    got = max_pool(x, size, strides, padding)
    for i, j, meter in _windows(x, size, strides, padding, value=-np.inf):
        np.testing.assert_array_equal(got[:, i, j], meter.max((1, 2)))
    got = avg_pool(x, size, strides)
    for i, j, meter in _windows(x, size, strides, 0):
        np.testing.assert_allclose(got[:, i, j], meter.mean((1, 2)), rtol=1e-5)


@pytest.mark.parametrize(('size', 'strides', 'padding'), [(3, 2, 0), (3, 2, 1), (2, 2, 0)])
@pytest.mark.parametrize('shape', [(6, 7), (9, 8)])
def test_max_pools_gradient_goes_to_the_first_maximum(size, strides, padding, shape):
    """Numbers of few values, so that most windows hold their maximum more than once."""
    x = np.round(_noise(2, *shape, 3)) - 5
    maxima, transpose = jax.vjp(lambda x: max_pool(x, size, strides, padding), x)
    gradient = _noise(*maxima.shape, seed=1)
    padded = np.pad(np.zeros_like(x), [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    for i, j, meter in _windows(x, size, strides, padding, value=-np.inf):
        first = meter.reshape(2, -1, 3).argmax(1)
        for b in range(2):
            for c in range(3):
                row, column = divmod(first[b, c], size)
                padded[b, strides * i + row, strides * j + column, c] += gradient[b, i, j, c]
    rows, columns = (slice(padding, padding + length) for length in shape)
    np.testing.assert_allclose(transpose(gradient)[0], padded[:, rows, columns], atol=1e-6)
    native = xla_gradient(x, gradient, window=size, strides=strides, padding=padding)
    np.testing.assert_allclose(native, padded[:, rows, columns], atol=1e-6)


@pytest.mark.parametrize('shape', [(6, 6), (7, 5), (1, 1), (13, 4)])
def test_adaptive_avg_pool_takes_the_mean_of_torchs_cells(shape):
    x = _noise(2, *shape, 3)
    got = adaptive_avg_pool(x, 6)
    for i in range(6):
        for j in range(6):
            rows = slice(i * shape[0] // 6, -(-(i + 1) * shape[0] // 6))
            columns = slice(j * shape[1] // 6, -(-(j + 1) * shape[1] // 6))
            np.testing.assert_allclose(
                got[:, i, j], x[:, rows, columns].mean((1, 2)), rtol=1e-4, atol=1e-6
            )


@pytest.mark.parametrize(
    ('initializer', 'std'),
    [
        (init.normal(0.01), 0.01),
        (init.he_normal_fan_in, np.sqrt(2 / (9 * 64))),
        (init.he_normal_fan_out, np.sqrt(2 / (9 * 128))),
        (init.uniform_fan_in, 1 / np.sqrt(9 * 64) / np.sqrt(3)),
    ],
)
def test_initializers_have_their_deviation_and_follow_the_key(initializer, std):
    shape = (3, 3, 64, 128)
    draw = initializer(jax.random.key(0), shape)
    np.testing.assert_allclose(draw.std(), std, rtol=0.02)
    np.testing.assert_allclose(draw.mean(), 0, atol=std / 50)
    np.testing.assert_array_equal(draw, jax.jit(lambda k: initializer(k, shape))(jax.random.key(0)))
    assert not (draw == initializer(jax.random.key(1), shape)).any()


def test_large_weights_are_drawn_as_streams_that_differ():
    normal = lambda rng, values: rng.standard_normal(dtype=np.float32, out=values)  # noqa: E731
    fills = [(normal, jax.random.key_data(jax.random.key(0)), (3, 1000))]
    (whole,), (parts,) = init.draw_all(fills), init.draw_all(fills, stream_size=1000)
    np.testing.assert_array_equal(parts[0], whole[0])
    assert len({float(part[0]) for part in parts}) == 3 and abs(parts.std() - 1) < 0.1


def test_relu6_is_flat_at_both_ends():
    x = jnp.array([-1.0, 0.0, 0.5, 6.0, 7.0])
    np.testing.assert_array_equal(relu6(x), [0, 0, 0.5, 6, 6])
    np.testing.assert_array_equal(jax.grad(lambda x: relu6(x).sum())(x), [0, 0, 1, 0, 0])
    assert relu6(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
