"""Kernels compute what XLA's forms compute, for every shape, and differentiate and batch alike."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcls.ops import batch_norm, native
from flaxcls.ops.convolution import convolve, convolve_affine
from flaxcls.ops.dense import multiply
from flaxcls.ops.fusion import find_groups, fuse
from flaxcls.ops.pooling import max_pool

BUILT = native.status().startswith('oneDNN')
pytestmark = pytest.mark.skipif(
    not BUILT and 'CI' not in os.environ, reason=f'kernels: {native.status()}'
)


def test_they_are_built():
    assert BUILT, native.status()


def _noise(*shape, dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def _gradients(function, arrays, weights_seed=9):
    """Returns the results of a function and their weighted sum's gradients, compiled."""

    def weigh(*arrays):
        results = jax.tree.leaves(function(*arrays))
        weights = [_noise(*r.shape, seed=weights_seed + i) for i, r in enumerate(results)]
        total = sum(
            (r.astype(jnp.float32) * w).sum() for r, w in zip(results, weights, strict=True)
        )
        return total, results

    return jax.jit(jax.grad(weigh, range(len(arrays)), has_aux=True))(*arrays)


def _assert_as_without(function, *arrays, precision=2e-5):
    got = _gradients(function, arrays)
    with native.disabled():
        expected = _gradients(lambda *arrays: function(*arrays), arrays)
    for value, wanted in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
        value, wanted = (np.asarray(v, np.float64) for v in (value, wanted))
        assert value.shape == wanted.shape
        if value.size:
            wrong = np.abs(value - wanted) > precision * (np.abs(wanted) + np.abs(wanted).max())
            # What one form rounds to zero passes a ReLU in the other, and its gradient with it.
            assert wrong.mean() <= (0.05 if precision > 1e-2 else 0)


def _is_kernel(name, function, *arrays):
    return f'flaxcls_{name}' in jax.jit(function).lower(*arrays).as_text()


PRECISION = {jnp.float32: 2e-5, jnp.bfloat16: 2e-2}
SHAPES = [  # Batch, height, width, channels, features, window, strides, padding, groups.
    (2, 9, 7, 16, 32, 3, 1, 1, 1),
    (2, 9, 7, 16, 32, 3, 2, 1, 1),
    (3, 8, 8, 12, 24, 1, 1, 0, 1),
    (3, 9, 8, 12, 24, 1, 2, 0, 1),
    (2, 23, 23, 3, 64, 7, 2, 3, 1),
    (2, 39, 35, 3, 48, 11, 4, 2, 1),
    (2, 13, 13, 16, 32, 5, 1, 2, 2),
    (2, 8, 8, 64, 64, 3, 1, 1, 32),
    (2, 8, 8, 64, 64, 3, 2, 1, 16),
    (1, 5, 5, 7, 9, 3, 1, 1, 1),
    (1, 1, 1, 5, 3, 1, 1, 0, 1),
    (1, 3, 3, 1, 1, 3, 1, 0, 1),
    (0, 8, 8, 16, 16, 3, 1, 1, 1),
    # Windows that go by Winograd, all tiles at once in the last.
    (20, 11, 9, 32, 64, 5, 1, 2, 1),
    (20, 11, 9, 48, 12, 3, 1, 1, 1),
    (20, 7, 9, 20, 36, 3, 1, 1, 1),
    (20, 8, 9, 64, 32, 5, 1, 0, 1),
    (20, 9, 7, 32, 48, 3, 1, 1, 1),
    (9, 11, 12, 64, 32, 3, 1, 0, 1),
    (60, 3, 4, 32, 32, 3, 1, 2, 1),
    (20, 7, 7, 512, 48, 3, 1, 1, 1),
    (60, 4, 4, 64, 512, 3, 1, 1, 1),
]


@pytest.mark.parametrize('dtype', PRECISION, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_convolutions_and_their_gradients(shape, dtype):
    batch, height, width, channels, features, window, strides, padding, groups = shape
    x = _noise(batch, height, width, channels, dtype=dtype)
    kernel = _noise(window, window, channels // groups, features, dtype=dtype, seed=1)
    conv = functools.partial(convolve, strides=strides, padding=padding, groups=groups)
    _assert_as_without(conv, x, kernel, precision=PRECISION[dtype])


@pytest.mark.parametrize('dtype', PRECISION, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('added', [False, True])
@pytest.mark.parametrize('shape', SHAPES[:8], ids=str)
def test_convolutions_with_what_follows(shape, added, relu, dtype):
    batch, height, width, channels, features, window, strides, padding, groups = shape
    x = _noise(batch, height, width, channels, dtype=dtype)
    kernel = _noise(window, window, channels // groups, features, dtype=dtype, seed=1)
    options = {'strides': strides, 'padding': padding, 'groups': groups, 'relu': relu}
    scale, bias = _noise(features, seed=2), _noise(features, seed=3)
    y = convolve(x, kernel, strides=strides, padding=padding, groups=groups)
    addends = [_noise(*y.shape, dtype=dtype, seed=4)] if added else []
    affine = lambda *arrays: convolve_affine(*arrays, **options)  # noqa: E731
    arrays = (x, kernel, scale, bias, *addends)
    assert dtype == jnp.bfloat16 or _is_kernel('affine_convolution', affine, *arrays)
    got = jax.jit(affine)(*arrays)
    with native.disabled():
        expected = affine(*arrays)
    got, expected = (np.asarray(v, np.float64) for v in (got, expected))
    atol = PRECISION[dtype] * np.abs(expected).max()
    np.testing.assert_allclose(got, expected, rtol=PRECISION[dtype], atol=atol)


@pytest.mark.parametrize('dtype', PRECISION, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize('batch', [0, 1, 16])
def test_products_of_matrices(batch, dtype):
    x, kernel = _noise(batch, 70, dtype=dtype), _noise(70, 33, dtype=dtype, seed=1)
    # Not every processor has kernels for bfloat16; then the plain forms compute it.
    assert dtype == jnp.bfloat16 or _is_kernel('multiply', multiply, x, kernel)
    _assert_as_without(multiply, x, kernel, precision=PRECISION[dtype])


@pytest.mark.parametrize('rows', [1, 7, 16, 32])
def test_products_of_few_rows_with_many_weights(rows):
    """Which a kernel of our own computes, 8 rows at once, then 4, then one."""
    x, kernel = _noise(rows, 1037), _noise(1037, 1024, seed=1)
    _assert_as_without(multiply, x, kernel, precision=PRECISION[jnp.float32])


@pytest.mark.parametrize('dtype', PRECISION, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize('size', [(3, 2, 0), (3, 2, 1), (2, 2, 0), (3, 1, 1), (2, 1, 0)])
@pytest.mark.parametrize('shape', [(2, 9, 7, 16), (1, 5, 6, 3), (0, 4, 4, 8)], ids=str)
def test_max_pooling_and_which_pixel_gets_the_gradient(shape, size, dtype):
    """Of few different numbers, so that windows have several maxima, of which the first wins."""
    x = jnp.asarray(np.random.default_rng(0).integers(-2, 2, shape), dtype)
    _assert_as_without(lambda x: max_pool(x, *size), x, precision=PRECISION[dtype])


NORMS = [  # Groups, examples of each, height, width, channels.
    (1, 4, 5, 7, 16),
    (3, 2, 4, 4, 12),
    (2, 8, 9, 9, 64),
    (1, 1, 3, 3, 3),
    (1, 2, 1, 1, 100),
    (2, 3, 7, 5, 130),
    (1, 8, 56, 56, 24),
]


def _norm_block(x, scale, bias, *addends, relu, eps=1e-5):
    y, moments = batch_norm.batch_norm(x, scale, bias, jnp.zeros_like(bias), eps)
    y = y.astype(x.dtype)
    y = y + addends[0] if addends else y
    return jax.nn.relu(y) if relu else y, moments.mean, moments.var


@pytest.mark.parametrize('dtype', PRECISION, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('added', [False, True])
@pytest.mark.parametrize('shape', NORMS, ids=str)
def test_batch_norm_with_what_follows(shape, added, relu, dtype):
    """The statistics' own gradients included; the mean is large beside the deviations."""
    x = (_noise(*shape) + 30).astype(dtype)
    scale, bias = 1 + 0.1 * _noise(shape[-1], seed=1), _noise(shape[-1], seed=2)
    addends = [_noise(*shape, dtype=dtype, seed=3)] if added else []
    block = functools.partial(_norm_block, relu=relu)
    fused = fuse(block)
    _assert_as_without(
        lambda *arrays: fused(*arrays), x, scale, bias, *addends,
        precision=5 * PRECISION[dtype],
    )  # fmt: skip
    program = jax.make_jaxpr(block)(x, scale, bias, *addends).jaxpr
    (group,) = find_groups(program).values() or [None] if added or relu else [None]
    assert (group is not None) == (added or relu)


@pytest.mark.parametrize('dtype', PRECISION, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('channels', [(16,), (24, 12, 12), (64, *[32] * 5), (3, 1, 5)], ids=str)
def test_parts_are_normalized_as_one_array(channels, relu, dtype):
    parts = [_noise(2, 3, 9, 5, c, dtype=dtype, seed=c + i) for i, c in enumerate(channels)]
    total = sum(channels)
    vectors = [_noise(2, 1, 1, 1, total, seed=1), _noise(2, 1, 1, 1, total, seed=2)]

    def block(mean, factor, bias, *parts):
        y = batch_norm.normalize(parts, mean, factor, bias).astype(dtype)
        return jax.nn.relu(y) if relu else y

    _assert_as_without(
        fuse(block), *vectors, _noise(total, seed=3), *parts, precision=PRECISION[dtype]
    )


@pytest.mark.parametrize('dtype', PRECISION, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('shape', SHAPES[:8], ids=str)
def test_convolutions_with_a_bias(shape, relu, dtype):
    batch, height, width, channels, features, window, strides, padding, groups = shape
    x = _noise(batch, height, width, channels, dtype=dtype)
    kernel = _noise(window, window, channels // groups, features, dtype=dtype, seed=1)

    def block(x, kernel, bias):
        y = convolve(x, kernel, bias, strides=strides, padding=padding, groups=groups)
        return jax.nn.relu(y) if relu else y

    bias = _noise(features, seed=2)
    assert len(find_groups(jax.make_jaxpr(block)(x, kernel, bias).jaxpr)) == relu
    _assert_as_without(fuse(block), x, kernel, bias, precision=PRECISION[dtype])


FUNCTIONS = {
    'convolution': (
        lambda x, k: convolve(x, k, strides=2, padding=1),
        [(2, 7, 7, 8), (3, 3, 8, 16)],
    ),
    'multiply': (multiply, [(4, 8), (8, 5)]),
    'evaluation': (
        lambda x, mean, factor, bias: batch_norm.normalize_in_evaluation((x,), mean, factor, bias),
        [(2, 5, 5, 8), (8,), (8,), (8,)],
    ),
}
# Without a forward derivative, today as before: custom_vjp.
BACKWARD_ONLY = {
    'max_pool': (lambda x: max_pool(x, 3, 2, 1), [(2, 7, 7, 8)]),
    'batch_norm': (
        lambda x, s, b: _norm_block(x, s, b, relu=False)[0],
        [(2, 3, 5, 5, 8), (8,), (8,)],
    ),
    'normalize': (
        lambda x, m, f, b: batch_norm.normalize((x,), m, f, b),
        [(2, 3, 5, 5, 8), (2, 1, 1, 1, 8), (2, 1, 1, 1, 8), (8,)],
    ),
}


@pytest.mark.parametrize('name', FUNCTIONS | BACKWARD_ONLY)
def test_they_are_batched_and_differentiated_twice(name):
    function, shapes = (FUNCTIONS | BACKWARD_ONLY)[name]
    arrays = [_noise(*shape, seed=i) for i, shape in enumerate(shapes)]
    several = [jnp.stack([array, 2 * array, -array]) for array in arrays]
    weigh = lambda *arrays: jnp.sin(function(*arrays)).sum()  # noqa: E731

    def second(*arrays):
        gradient = jax.grad(weigh, range(len(arrays)))
        inner = lambda *arrays: sum(jnp.cos(g).sum() for g in gradient(*arrays))  # noqa: E731
        return jax.grad(inner, range(len(arrays)))(*arrays)

    def everything(several, arrays):
        found = [jax.vmap(function)(*several), second(*arrays)]
        found.append(jax.vmap(function, (0, *[None] * (len(arrays) - 1)))(several[0], *arrays[1:]))
        if name in FUNCTIONS:
            found.append(jax.jvp(function, tuple(arrays), tuple(arrays)))
        return found

    got = jax.jit(everything)(several, arrays)
    with native.disabled():
        expected = jax.jit(lambda *arrays: everything(*arrays))(several, arrays)
    for value, wanted in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
        atol = 1e-4 * float(np.abs(wanted).max())
        np.testing.assert_allclose(value, wanted, rtol=1e-3, atol=atol)


def test_what_onednn_refuses_is_plain_as_it_is_lowered(monkeypatch):
    x, kernel = _noise(2, 7, 7, 8), _noise(3, 3, 8, 16, seed=1)
    conv = functools.partial(convolve, padding=1)
    assert _is_kernel('convolution', conv, x, kernel)
    monkeypatch.setattr('flaxcls.ops.convolution._is_supported', lambda *_, **__: False)
    refused = lambda x, kernel: conv(x, kernel)  # noqa: E731
    assert not _is_kernel('convolution', refused, x, kernel)
    np.testing.assert_allclose(
        jax.jit(refused)(x, kernel), jax.jit(conv)(x, kernel), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize('dtype', [jnp.float64, jnp.float16])
def test_other_precisions_are_xlas(dtype):
    with jax.enable_x64(True):
        x, kernel = _noise(2, 7, 7, 8, dtype=dtype), _noise(3, 3, 8, 16, dtype=dtype)
        assert not _is_kernel('convolution', convolve, x, kernel)
        assert convolve(x, kernel).dtype == dtype


def test_an_error_inside_is_a_sentence_of_the_program():
    x, kernel = _noise(2, 7, 7, 8), _noise(3, 3, 8, 16)
    convolve(x, kernel)  # So that XLA knows the kernel.
    wrong = jax.ffi.ffi_call(
        'flaxcls_convolution', jax.ShapeDtypeStruct((2, 9, 9, 16), jnp.float32)
    )
    with pytest.raises(jax.errors.JaxRuntimeError, match='could not create'):
        options = dict.fromkeys(('strides', 'padding', 'groups'), np.int64(3))
        jax.block_until_ready(wrong(x, kernel, **options))


def test_a_processor_held_to_less_and_any_number_of_threads_compute_the_same():
    """What one thread computes is what two do, to the byte; another instruction set rounds."""
    code = """
import sys, numpy as np, jax, jax.numpy as jnp
from flaxcls.ops.convolution import convolve
noise = lambda seed, *shape: jnp.asarray(np.random.default_rng(seed).normal(size=shape), 'float32')
loss = lambda x, k: jnp.sin(convolve(x, k, padding=1)).sum()
arrays = noise(0, 20, 11, 9, 32), noise(1, 3, 3, 32, 48)
results = convolve(*arrays, padding=1), *jax.jit(jax.grad(loss, (0, 1)))(*arrays)
sys.stdout.buffer.write(b''.join(np.asarray(result).tobytes() for result in results))
"""

    def compute(**variables):
        command = [sys.executable, '-c', code]
        found = subprocess.check_output(command, env=os.environ | variables)
        return np.frombuffer(found, np.float32)

    one = compute(OMP_NUM_THREADS='1')
    np.testing.assert_array_equal(one, compute(OMP_NUM_THREADS='2'))
    held = compute(ONEDNN_MAX_CPU_ISA='AVX2')
    np.testing.assert_allclose(one, held, rtol=1e-3, atol=2e-5 * np.abs(one).max())


@pytest.mark.parametrize('value', ['0', '1'])
def test_a_variable_switches_them_off(value):
    code = 'from flaxcls.ops import native; print(native.status())'
    environment = os.environ | {native.SWITCH: value}
    found = subprocess.run(
        [sys.executable, '-c', code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert found.startswith('off (FLAXCLS_NATIVE=0)' if value == '0' else 'oneDNN')


def test_kernels_of_another_jaxlib_are_not_loaded(monkeypatch):
    monkeypatch.setattr('jaxlib.__version__', '0.0.1')
    native._load.cache_clear()
    try:
        assert 'install flaxcls again' in native.status()
    finally:
        native._load.cache_clear()


def test_the_same_bytes_twice():
    """OpenMP's threads end in any order; sums do not depend on it."""
    x, scale, bias = 3 * _noise(2, 16, 20, 20, 48), _noise(48, seed=1), _noise(48, seed=2)
    kernel = _noise(3, 3, 48, 48, seed=3)

    def block(x, scale, bias, kernel):
        y, *_ = _norm_block(x, scale, bias, relu=True)
        return convolve(y.reshape(-1, 20, 20, 48), kernel, padding=1)

    first = _gradients(block, (x, scale, bias, kernel))
    for _ in range(5):
        again = _gradients(block, (x, scale, bias, kernel))
        jax.tree.map(np.testing.assert_array_equal, first, again)
