"""The zoo: every row counted, run, differentiated, and every option of its network changed."""

import dataclasses
import functools
import itertools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcls.errors import UserError
from flaxcls.models import densenet
from flaxcls.models.batch_norm import BatchNorm
from flaxcls.models.densenet import Features
from flaxcls.models.image_size import require_image_size
from flaxcls.models.init import abstract_variables, init_variables
from flaxcls.models.registry import MODELS, create_model
from flaxcls.models.resnet import (
    BasicBlock,
    BottleneckBlock,
    PreActBasicBlock,
    PreActBottleneckBlock,
    PreActResNet,
    ResNet,
)
from flaxcls.models.summary import count_cost, list_layers
from flaxcls.planning.networks import layer_table, model_table

# What references say of rows and of options: trainable parameters, and 10**9 multiply-adds of
# convolutions and fully connected layers where they are known.
COSTS = [
    ('alexnet_2012', {}, 60_965_224, 0.7244),
    ('alexnet', {}, 61_100_840, 0.7142),
    # AlexNet with a scale and a bias per channel in place of the convolutions' 1,152 biases.
    ('alexnet_bn', {}, 61_100_840 + 1_152, 0.7142),
    ('vgg16', {}, 138_357_544, 15.4703),
    ('vgg16_bn', {}, 138_365_992, 15.4703),
    ('mobilenet_v2', {}, 3_504_872, 0.3008),
    ('resnet18', {}, 11_689_512, 1.8141),
    ('resnet34', {}, 21_797_672, 3.6638),
    ('resnet50', {}, 25_557_032, 4.0892),
    ('resnet101', {}, 44_549_160, 7.8014),
    ('resnet152', {}, 60_192_808, 11.5136),
    ('resnet50_v1', {}, 25_557_032, 3.8580),
    ('resnet101_v1', {}, 44_549_160, None),
    ('resnet152_v1', {}, 60_192_808, None),
    ('resnet18_v2', {}, 11_687_720, 1.8141),
    ('resnet34_v2', {}, 21_795_880, 3.6638),
    ('resnet50_v2', {}, 25_549_352, 4.0892),
    ('resnet101_v2', {}, 44_541_480, 7.8014),
    ('resnet152_v2', {}, 60_185_128, 11.5136),
    ('resnet18_d', {}, 11_708_744, 2.0537),
    ('resnet34_d', {}, 21_816_904, 3.9034),
    ('resnet50_d', {}, 25_576_264, 4.3288),
    ('resnet101_d', {}, 44_568_392, 8.0410),
    ('resnet152_d', {}, 60_212_040, 11.7533),
    ('resnext50_32x4d', {}, 25_028_904, None),
    ('resnext101_32x8d', {}, 88_791_336, None),
    ('wide_resnet50_2', {}, 68_883_240, None),
    ('wide_resnet101_2', {}, 126_886_696, None),
    ('resnet20', {}, 269_722, 0.0406),
    ('resnet32', {}, 464_154, 0.0689),
    ('resnet44', {}, 658_586, 0.0972),
    ('resnet56', {}, 853_018, 0.1255),
    ('resnet110', {}, 1_727_962, 0.2529),
    ('resnet20', {'shortcut': 'B'}, 272_474, None),
    ('resnet32', {'shortcut': 'B'}, 466_906, None),
    ('resnet44', {'shortcut': 'B'}, 661_338, None),
    ('resnet56', {'shortcut': 'B'}, 855_770, None),
    ('resnet110', {'shortcut': 'B'}, 1_730_714, None),
    ('densenet121', {}, 7_978_856, 2.8342),
    ('densenet169', {}, 14_149_480, 3.3598),
    ('densenet201', {}, 20_013_928, 4.2914),
    ('densenet161', {}, 28_681_000, 7.7279),
    ('densenet264', {}, 33_337_704, 5.7517),
    ('densenet264_48', {}, 72_686_632, 12.8507),
    ('densenet_40_12', {}, 1_019_722, 0.2648),
    ('densenet_100_12', {}, 6_979_642, 1.7695),
    ('densenet_100_24', {}, 27_249_082, 6.8893),
    ('densenet_bc_100_12', {}, 769_162, 0.2879),
    ('densenet_bc_250_24', {}, 15_324_406, 5.4188),
    ('densenet_bc_190_40', {}, 25_624_430, 9.3019),
]
# The least that each family's strides take; checked against the search in a test below.
SMALLEST = {'alexnet_2012': 67, 'alexnet': 63, 'alexnet_bn': 63, 'vgg16': 32, 'vgg16_bn': 32}

# A tenth of the compile time; the numbers are those of the same operations, unoptimised.
_FAST_COMPILE = {
    'xla_backend_optimization_level': 0,
    'xla_llvm_disable_expensive_passes': True,
}


def _smallest(name):
    if name in SMALLEST:
        return SMALLEST[name]
    small_images = MODELS[name].image_size == 32
    if 'res' in name or 'mobile' in name:
        return 3 if small_images else 17
    return 4 if small_images else 29


def test_every_row_has_a_known_cost():
    assert {name for name, options, *_ in COSTS if not options} == set(MODELS)


@pytest.mark.parametrize(('name', 'options', 'parameters', 'gmacs'), COSTS, ids=str)
def test_parameters_and_multiply_adds_are_exact(name, options, parameters, gmacs):
    row = MODELS[name]
    cost = count_cost(create_model(name, **options), row.image_size)
    assert cost.parameters == parameters
    if not options:
        counted = round(cost.macs / 1e9, 4), round(cost.activations / 1e6, 3)
        assert (row.parameters, row.gmacs, row.activations) == (parameters, *counted)
        assert gmacs in (None, row.gmacs)


# The others are the same code, and up to minutes of compilation each; test_parity.py has the forms
# of ResNet, and DenseNets.
FAST = {'alexnet_2012', 'alexnet_bn', 'resnet20'}


@pytest.mark.parametrize(
    'name',
    [pytest.param(name, marks=() if name in FAST else pytest.mark.weekly) for name in MODELS],
)
def test_forward_and_gradient_are_finite_and_statistics_move_in_training_only(name):
    size = _smallest(name)
    model = create_model(name, num_classes=3)
    variables = init_variables(model, jax.random.key(0), size)
    images = jax.random.normal(jax.random.key(1), (2, size, size, 3))

    traced = []

    @jax.jit(compiler_options=_FAST_COMPILE)
    def evaluate_and_differentiate(variables, images):
        traced.append(1)

        def loss_fn(params):
            logits, updates = model.apply(
                {**variables, 'params': params},
                images,
                train=True,
                rngs={'dropout': jax.random.key(2)},
                mutable=['batch_stats'],
            )
            return jnp.mean(jax.nn.logsumexp(logits, -1) - logits[:, 0]), updates

        logits, evaluated = model.apply(variables, images, train=False, mutable=['batch_stats'])
        gradients, trained = jax.grad(loss_fn, has_aux=True)(variables['params'])
        params = jax.tree.map(lambda p, g: p - 1e-3 * g, variables['params'], gradients)
        stats = trained.get('batch_stats', {})
        return (
            logits,
            gradients,
            evaluated.get('batch_stats', {}),
            {'params': params} | {'batch_stats': stats},
        )

    logits, gradients, evaluated, updated = evaluate_and_differentiate(variables, images)
    assert logits.shape == (2, 3)
    assert logits.dtype == jnp.float32
    assert jnp.isfinite(logits).all()
    for leaf in jax.tree.leaves(gradients):
        assert jnp.isfinite(leaf).all()
        assert leaf.any() or leaf.size < 1e4  # A disconnected kernel would have no gradient at all.
    before = jax.tree.leaves(variables['batch_stats'])
    assert bool(before) == (name not in ('alexnet', 'alexnet_2012', 'vgg16'))
    assert all((a == b).all() for a, b in zip(before, jax.tree.leaves(evaluated), strict=True))
    moved = jax.tree.leaves(updated['batch_stats'])
    assert all((a != b).any() for a, b in zip(before, moved, strict=True))
    evaluate_and_differentiate(updated, images)
    assert len(traced) == 1


# One of each stem and family: their search takes the same code for all depths.
@pytest.mark.parametrize(
    'name',
    ['alexnet_2012', 'alexnet_bn', 'vgg16', 'mobilenet_v2', 'resnet18', 'resnet18_d', 'resnet20'],
)
def test_too_small_images_are_refused_naming_the_smallest(name):
    smallest = _smallest(name)
    model = create_model(name)
    require_image_size(model, name, smallest)
    with pytest.raises(UserError, match=f'smallest is {smallest} pixels'):
        require_image_size(model, name, smallest - 1)


@pytest.mark.parametrize('name', [n for n in MODELS if n.startswith('densenet')])
def test_a_densenets_smallest_image_is_one_pixel_more_than_the_largest_refused(name):
    model = create_model(name, block_sizes=(1,) * (3 if MODELS[name].image_size == 32 else 4))
    smallest = _smallest(name)
    require_image_size(model, name, smallest)
    with pytest.raises(UserError, match=f'smallest is {smallest} pixels'):
        require_image_size(model, name, smallest - 1)


@pytest.mark.parametrize(
    ('name', 'options', 'says'),
    [
        ('resnet51', {}, 'did you mean resnet5'),
        ('resnet50', {'growth_rate': 12}, 'growth_rate=12 has no meaning for resnet50'),
        ('densenet121', {'stage_sizes': (1,)}, 'block_sizes'),
        ('resnet20', {'dropout_rate': 0.1}, 'no meaning'),
    ],
)
def test_unknown_networks_and_options_are_refused(name, options, says):
    with pytest.raises(UserError, match=says):
        create_model(name, **options)


# Of every attribute, values of which any two make different networks.
VALUES = {
    'num_classes': (2, 3),
    'features': ((64, 192, 384, 256, 256), (64, 192, 384, 256, 128)),
    'hidden': (64, 128),
    'width': (32, 64),
    'width_multiplier': (0.125, 0.5),
    'two_groups': (False, True),
    'stem_padding': (1, 2),
    'pool_window': (2, 3),
    'lrn': ('none', 'paper', 'caffe'),
    'use_batch_norm': (False, True),
    'initializer': ('paper', 'he', 'filters'),
    'dropout_rate': (0.0, 0.1, 0.2),
    'stage_sizes': ((2, 1), (1, 2)),
    'stem': ('7x7', '3x3', 'deep', 'small'),
    'shortcut': ('A', 'B', 'C', 'D', 'none'),
    'zero_init_residual': (False, True),
    'stochastic_depth_rate': (0.0, 0.1, 0.2),
    'growth_rate': (4, 8),
    'block_sizes': ((2, 1), (1, 2)),
    'stem_features': (None, 5, 6),
    'bottleneck': (False, True),
    'compression': (0.5, 1.0),
    'norm': (BatchNorm, functools.partial(BatchNorm, eps=1e-3)),
    'dtype': (jnp.float32, jnp.bfloat16),
}
BLOCKS = {
    ResNet: (
        BasicBlock,
        BottleneckBlock,
        functools.partial(BottleneckBlock, stride_in_first=True),
        functools.partial(BottleneckBlock, groups=2),
        functools.partial(BottleneckBlock, group_width=128),
    ),
    PreActResNet: (PreActBasicBlock, PreActBottleneckBlock),
}
# What an attribute has no effect without.
ONLY_WITH = {'norm': {'use_batch_norm': True}}
SHALLOW = {'stage_sizes': (2, 1), 'block_sizes': (2, 1), 'width_multiplier': 0.125}


def _attributes(model):
    return {field.name for field in dataclasses.fields(model)} - {'parent', 'name'}


def _shallow(name):
    """Returns the network with few layers and channels, and a side of images that it takes."""
    model = create_model(name, num_classes=2)
    options = {key: value for key, value in SHALLOW.items() if key in _attributes(model)}
    return model.clone(**options), 67 if name.startswith('alexnet') else 32


@functools.cache
def _program(model, side):
    """Returns the text of `init` and of the forward pass in training, apart from addresses."""
    rngs = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}
    images = jnp.zeros((1, side, side, 3))
    trace = jax.make_jaxpr(lambda rngs: model.init_with_output(rngs, images, train=True))(rngs)
    return re.sub('0x[0-9a-f]+', '', str(trace))


def _are_different(a, b, side):
    if _program(a, side) != _program(b, side):
        return True
    weights = [init_variables(model, jax.random.key(0), side) for model in (a, b)]
    return not all(jax.tree.leaves(jax.tree.map(np.array_equal, *weights)))


@pytest.mark.parametrize('name', MODELS)
def test_any_two_values_of_an_attribute_make_different_networks(name):
    model, side = _shallow(name)
    without_effect = []
    for attribute in sorted(_attributes(model)):
        values = BLOCKS[type(model)] if attribute == 'block' else VALUES[attribute]
        needed = {k: v for k, v in ONLY_WITH.get(attribute, {}).items() if k in _attributes(model)}
        networks = [(value, model.clone(**needed, **{attribute: value})) for value in values]
        without_effect += [
            (attribute, a, b)
            for (a, network_a), (b, network_b) in itertools.combinations(networks, 2)
            if not _are_different(network_a, network_b, side)
        ]
    assert not without_effect


@pytest.mark.parametrize('name', ['alexnet', 'vgg16', 'resnet50', 'resnet50_v2', 'densenet121'])
def test_equal_attributes_make_equal_networks(name):
    """Otherwise the test above would find differences anywhere."""
    model, side = _shallow(name)
    assert _program.__wrapped__(model, side) == _program.__wrapped__(model.clone(), side)
    assert not _are_different(model, model.clone(), side)


def test_options_change_the_network():
    count = lambda name, **options: count_cost(create_model(name, **options), 64).parameters  # noqa: E731
    assert count('resnet20', width_multiplier=2.0) > 3 * count('resnet20')
    assert count('resnet20', stage_sizes=(1, 1, 1)) < count('resnet20')
    assert count('alexnet', width_multiplier=0.25) < count('alexnet') / 10
    assert count('densenet_bc_100_12', block_sizes=(6, 6, 6)) == 176_122
    assert count('resnet20', num_classes=100) == 275_572


@pytest.mark.parametrize('name', ['alexnet', 'resnet20', 'densenet_bc_100_12'])
def test_bfloat16_computes_with_float32_parameters_and_logits(name):
    options = {'block_sizes': (2, 2, 2)} if 'dense' in name else {'width_multiplier': 0.25}
    model = create_model(name, dtype=jnp.bfloat16, **options)
    size = _smallest(name)
    variables = init_variables(model, jax.random.key(0), size)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
    program = jax.make_jaxpr(lambda x: model.apply(variables, x, train=False))(
        jnp.zeros((1, size, size, 3))
    )
    assert program.out_avals[0].dtype == jnp.float32
    assert 'bf16' in str(program)


@pytest.mark.parametrize(
    'name', ['alexnet_2012', 'vgg16_bn', 'mobilenet_v2', 'resnext50_32x4d', 'densenet_40_12']
)
def test_layers_add_up_to_the_network(name):
    layers = list_layers(create_model(name), MODELS[name].image_size)
    assert sum(layer.parameters for layer in layers) == MODELS[name].parameters
    assert round(sum(layer.macs for layer in layers) / 1e9, 4) == MODELS[name].gmacs
    assert layers[-1].output == (1, MODELS[name].num_classes)


def test_zoo_is_printed_with_every_row_and_every_layer():
    lines = model_table().splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(MODELS)
    lines = layer_table('resnet20', 48).splitlines()
    assert ' '.join(lines[1].split()) == 'stem Conv 48x48x16 3x3 1 1 1 3 432 1.00'
    assert lines[-1].startswith('resnet20 at 48x48: 269,722 parameters')
    with pytest.raises(UserError, match='did you mean'):
        layer_table('resnet21')


def test_shortcut_c_projects_in_every_block_and_a_never():
    for shortcut, blocks in {'A': 0, 'none': 0, 'B': 2, 'C': 9}.items():
        layers = list_layers(create_model('resnet20', shortcut=shortcut), 32)
        assert sum(layer.path.endswith('conv_proj') for layer in layers) == blocks


@pytest.mark.parametrize('name', ['resnet20', 'resnet18_v2', 'resnet50'])
def test_without_shortcuts_nothing_passes_a_block_by(name):
    """A branch of zeros ends all that the images say."""
    options = {'stage_sizes': (1, 1), 'width_multiplier': 0.25}
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    depends = {}
    for shortcut in ('A', 'none'):
        model = create_model(name, shortcut=shortcut, **options)
        variables = init_variables(model, jax.random.key(0), 32)
        block = variables['params']['stage1_block1']
        last = max(layer for layer in block if layer.startswith('conv'))
        block[last]['kernel'] = jnp.zeros_like(block[last]['kernel'])
        logits = model.apply(variables, images, train=False)
        depends[shortcut] = bool((logits[0] != logits[1]).any())
    assert depends == {'A': True, 'none': False}


@pytest.mark.parametrize('name', ['resnet20', 'resnet18_v2', 'resnet50'])
def test_zero_initialised_blocks_are_their_shortcuts(name):
    options = {'shortcut': 'A', 'stage_sizes': (1, 1), 'width_multiplier': 0.25}
    model = create_model(name, zero_init_residual=True, **options)
    variables = init_variables(model, jax.random.key(0), 32)
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    logits = model.apply(variables, images, train=False)
    kernels = lambda path, p: path[0].key.startswith('stage') and path[-1].key == 'kernel'  # noqa: E731
    other = jax.tree_util.tree_map_with_path(
        lambda path, p: 2 * p if kernels(path, p) else p, variables['params']
    )
    changed = model.apply(variables | {'params': other}, images, train=False)
    assert (logits == changed).all()
    assert not (logits == model.clone(zero_init_residual=False).apply(
        init_variables(model.clone(zero_init_residual=False), jax.random.key(0), 32),
        images, train=False)).all()  # fmt: skip


def test_stochastic_depth_rises_to_the_last_block_and_is_off_in_evaluation():
    options = {'stage_sizes': (2, 2), 'width_multiplier': 0.25}
    model = create_model('resnet20', stochastic_depth_rate=0.5, **options)
    plain = create_model('resnet20', **options)
    variables = init_variables(plain, jax.random.key(0), 16)
    images = jax.random.normal(jax.random.key(1), (64, 16, 16, 3))
    assert (
        model.apply(variables, images, train=False) == plain.apply(variables, images, train=False)
    ).all()
    rates = {}

    def record(call, args, kwargs, context):
        if type(context.module).__name__ == 'StochasticDepth':
            rates[context.module.path[0]] = context.module.rate
        return call(*args, **kwargs)

    keys = jax.random.split(jax.random.key(2), 64)
    with nn.intercept_methods(record):
        model.apply(variables, images, train=True, example_keys=keys, mutable=['batch_stats'])
    assert list(rates.values()) == [0.125, 0.25, 0.375, 0.5]


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        ('alexnet_2012', {'width_multiplier': 0.05}),
        ('vgg16_bn', {'width_multiplier': 0.05}),
        ('resnet50_v2', {'stage_sizes': (1, 1), 'zero_init_residual': True}),
        # An initializer that is not ours.
        ('resnet20', {'norm': functools.partial(BatchNorm, scale_init=nn.initializers.normal())}),
        ('densenet121', {'block_sizes': (2, 2)}),
    ],
)
def test_initial_weights_are_those_of_linens_init(name, options):
    model = create_model(name, **options)
    got = init_variables(model, jax.random.key(3), 80)
    images = jnp.zeros((1, 80, 80, 3))
    expected = jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(3))
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-6)
    jax.tree.map(compare, got, {'batch_stats': {}} | expected)
    jax.tree.map(
        np.testing.assert_array_equal, got, init_variables(model, jax.random.PRNGKey(3), 80)
    )
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert shapes({'batch_stats': {}} | abstract_variables(model, 80)) == shapes(got)


@pytest.mark.parametrize(
    ('initializer', 'std'), [('paper', 0.01), ('he', None), ('filters', 1 / 8)]
)
def test_alexnets_initialisers_have_their_spread(initializer, std):
    params = init_variables(
        create_model('alexnet', initializer=initializer), jax.random.key(0), 63
    )['params']
    kernel = params['conv1']['kernel']
    assert abs(float(kernel.std()) / (std or (2 / (11 * 11 * 3)) ** 0.5) - 1) < 0.02
    biased = {name for name, layer in params.items() if (layer['bias'] == 1).all()}
    assert biased == (
        {'conv2', 'conv4', 'conv5', 'fc6', 'fc7'} if initializer == 'paper' else set()
    )


def test_dense_layers_share_the_moments_that_each_would_take(monkeypatch):
    """In groups of four, in float64: the same logits, statistics and gradients."""
    norm = functools.partial(BatchNorm, group_size=4)
    model = create_model('densenet_bc_100_12', block_sizes=(2, 2), norm=norm, dtype=jnp.float64)
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).standard_normal((8, 8, 8, 3)) + 1)
        variables = model.init(jax.random.key(0), x, train=False)

        def weigh(params):
            logits, updates = model.apply(
                variables | {'params': params}, x, train=True, mutable=['batch_stats']
            )
            return jnp.sin(logits * jnp.arange(logits.size).reshape(logits.shape)).sum(), updates

        shared = jax.jit(jax.grad(weigh, has_aux=True))(variables['params'])
        norms = []
        monkeypatch.setattr(
            densenet, 'with_moments', lambda x, norm: norms.append(norm) or Features((x,), None)
        )
        own = jax.jit(jax.grad(weigh, has_aux=True))(variables['params'])
    assert norms
    assert None not in norms
    # Parameters, and so gradients, are float32.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), shared, own)
