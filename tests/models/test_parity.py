"""Networks against torchvision, timm and pytorchcv, by what benchmarks/make_goldens.py has kept."""

import collections
import pathlib

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import parity_cases
from benchmarks.parity_cases import CASES
from flaxcls import ops
from flaxcls.models.init import abstract_variables
from flaxcls.models.registry import MODELS, create_model
from flaxcls.weights.state_dict import from_state_dict, to_state_dict, torch_layout

# The others are the same code, wider or deeper, and up to minutes each: make test-weekly.
FAST = {
    'alexnet', 'mobilenet_v2', 'resnet18', 'resnet18_v2', 'resnet18_d', 'resnet50', 'resnet20_b',
    'densenet121', 'densenet_bc_40_12', 'densenet_c_40_12',
}  # fmt: skip
FAST_IN_TRAINING = {'alexnet'}
_COMPILER = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}


def _load(name):
    path = pathlib.Path(__file__).parents[1] / f'goldens/{name}.npz'
    return dict(np.load(path))


def _build(name):
    case = CASES[name]
    model = create_model(case.model, **case.options)
    if hasattr(model, 'dropout_rate'):
        model = model.clone(dropout_rate=0.0)
    entries = torch_layout(model, max(case.eval_sizes[0]))
    tensors = {entry.key: parity_cases.make_tensor(entry.key, entry.shape) for entry in entries}
    return model, entries, from_state_dict(tensors, entries)


def _assert_close(got, expected, relative):
    """The error of each row of numbers is small beside the largest of them."""
    scale = np.abs(expected).max(-1, keepdims=True)
    assert (np.abs(np.asarray(got, np.float64) - expected) <= relative * scale).all()


def _cases(fast):
    marks = {name: () if name in fast else pytest.mark.weekly for name in CASES}
    return pytest.mark.parametrize('name', [pytest.param(n, marks=m) for n, m in marks.items()])


@_cases(FAST)
def test_logits_are_the_reference_implementations(name):
    case, golden = CASES[name], _load(name)
    model, entries, variables = _build(name)
    shapes = {entry.key: entry.shape for entry in entries}
    assert parity_cases.digest(shapes) == golden['keys']

    evaluate = jax.jit(lambda v, x: model.apply(v, x, train=False), compiler_options=_COMPILER)
    for height, width in case.eval_sizes:
        logits = evaluate(variables, parity_cases.make_images(1, height, width))
        _assert_close(logits[:, :32], golden[f'eval_{height}x{width}'], 1e-4)


@_cases(FAST_IN_TRAINING)
def test_training_step_is_the_reference_implementations(name):
    with jax.enable_x64(True):  # Rounding flips a few ReLUs, and with them some gradients.
        _compare_training(name)


def _compare_training(name):
    case, golden = CASES[name], _load(name)
    model, entries, variables = _build(name)
    model = model.clone(dtype=jnp.float64)
    images = parity_cases.make_images(4, case.train_size, case.train_size)

    @jax.jit(compiler_options=_COMPILER)
    def train(variables):
        def loss_fn(params):
            logits, updates = model.apply(
                variables | {'params': params}, images, train=True, mutable=['batch_stats']
            )
            labels = parity_cases.make_labels(4, logits.shape[1])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.array(labels))
            return losses.mean(), (logits, updates.get('batch_stats', {}))

        (loss, (logits, statistics)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
            variables['params']
        )
        params = jax.tree.map(
            lambda p, g: p - parity_cases.LEARNING_RATE * g, variables['params'], gradients
        )
        return loss, logits, gradients, statistics, {'params': params, 'batch_stats': statistics}

    loss, logits, gradients, statistics, updated = train(variables)
    _assert_close(logits[:, :32], golden['train_logits'], 1e-6)
    np.testing.assert_allclose(loss, golden['loss'], rtol=1e-6)
    state = to_state_dict({'params': gradients, 'batch_stats': statistics}, entries)
    trained = {k: v for k, v in state.items() if 'running_' not in k}
    norms, projections = parity_cases.sketch(trained).T
    expected_norms, expected_projections = golden['gradients'].astype(np.float64).T
    # A bias before BatchNorm has no gradient: what is left there is rounding.
    tolerance = 1e-5 * expected_norms + 1e-9 * expected_norms.max()
    assert (np.abs(norms - expected_norms) <= tolerance).all()
    assert (np.abs(projections - expected_projections) <= tolerance).all()
    running = parity_cases.sketch({k: v for k, v in state.items() if 'running_' in k})
    expected = golden['statistics'].astype(np.float64)
    assert (np.abs(running - expected) <= 1e-6 * expected[:, :1]).all()
    np.testing.assert_allclose(train(updated)[0], golden['loss_after_step'], rtol=1e-5)


@pytest.mark.parametrize(
    ('graph', 'name'),
    [
        ('bvlc_alexnet', 'alexnet_2012'),
        ('densenet121', 'densenet121'),
        ('resnet50', 'resnet50'),
    ],
)
def test_onnx_wheels_graph_has_the_same_convolutions(graph, name):
    import onnx

    path = pathlib.Path(onnx.__file__).parent / f'backend/test/data/light/light_{graph}.onnx'
    assert _convolutions_of(onnx.load(path).graph) == _convolutions_here(name)


def _convolutions_of(graph):
    """Returns the multiset of (kernel [out, in, height, width], stride, groups)."""
    import onnx

    values = {value.name: value for value in graph.initializer}
    shapes = {
        node.output[0]: tuple(onnx.numpy_helper.to_array(values[node.input[0]]).tolist())
        for node in graph.node
        if node.op_type == 'ConstantOfShape'
    }
    found = collections.Counter()
    for node in graph.node:
        if node.op_type in ('Conv', 'Gemm'):
            options = {option.name: option for option in node.attribute}
            strides = options['strides'].ints[0] if 'strides' in options else 1
            groups = options['group'].i if 'group' in options else 1
            found[(*shapes[node.input[1]], 1, 1)[:4], strides, groups] += 1
    return found


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for program in jax.extend.core.jaxprs_in_params(equation.params):
            yield from _equations(program)


def _convolutions_here(name):
    found = collections.Counter()
    model, size = create_model(name), MODELS[name].image_size
    variables = abstract_variables(model, size)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    with ops.reference():
        traced = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))(variables, images)
    for equation in _equations(traced.jaxpr):
        if equation.primitive.name == 'conv_general_dilated':
            height, width, inputs, outputs = equation.invars[1].aval.shape
            strides = equation.params['window_strides'][0]
            groups = equation.params['feature_group_count']
            found[(outputs, inputs, height, width), strides, groups] += 1
        elif equation.primitive.name == 'dot_general':
            inputs, outputs = equation.invars[1].aval.shape
            found[(outputs, inputs, 1, 1), 1, 1] += 1
    return found
