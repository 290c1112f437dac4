"""The zoo: every row counted, run, differentiated."""

import jax
import jax.numpy as jnp
import pytest

from flaxcls.errors import UserError
from flaxcls.models import (
    MODELS,
    count_parameters,
    create_model,
    init_variables,
    require_image_size,
)

# Of the papers and of torchvision: name, options, trainable parameters at the paper's size.
PARAMETERS = [
    ('alexnet_2012', {}, 60_965_224),
    ('alexnet', {}, 61_100_840),
    # AlexNet with a scale and a bias per channel in place of the convolutions' 1,152 biases.
    ('alexnet_bn', {}, 61_100_840 + 1_152),
    ('resnet18', {}, 11_689_512),
    ('resnet34', {}, 21_797_672),
    ('resnet50', {}, 25_557_032),
    ('resnet101', {}, 44_549_160),
    ('resnet152', {}, 60_192_808),
    ('resnet20', {}, 269_722),
    ('resnet32', {}, 464_154),
    ('resnet44', {}, 658_586),
    ('resnet56', {}, 853_018),
    ('resnet110', {}, 1_727_962),
    ('resnet20', {'shortcut': 'B'}, 272_474),
    ('resnet32', {'shortcut': 'B'}, 466_906),
    ('resnet44', {'shortcut': 'B'}, 661_338),
    ('resnet56', {'shortcut': 'B'}, 855_770),
    ('resnet110', {'shortcut': 'B'}, 1_730_714),
    ('densenet121', {}, 7_978_856),
    ('densenet169', {}, 14_149_480),
    ('densenet201', {}, 20_013_928),
    ('densenet161', {}, 28_681_000),
    ('densenet264', {}, 33_337_704),
    ('densenet264', {'growth_rate': 48}, 72_686_632),
    ('densenet_40_12', {}, 1_019_722),
    ('densenet_100_12', {}, 6_979_642),
    ('densenet_100_12', {'growth_rate': 24}, 27_249_082),
    ('densenet_bc_100_12', {}, 769_162),
    ('densenet_bc_250_24', {}, 15_324_406),
    ('densenet_bc_190_40', {}, 25_624_430),
]
# The least that each family's strides take; checked against the search in a test below.
SMALLEST = {'alexnet_2012': 67, 'alexnet': 63, 'alexnet_bn': 63}

# A tenth of the compile time; the numbers are those of the same operations, unoptimised.
_QUICK_COMPILE = {
    'xla_backend_optimization_level': 0,
    'xla_llvm_disable_expensive_passes': True,
    'xla_cpu_use_fusion_emitters': False,
}


def _smallest(name):
    if name in SMALLEST:
        return SMALLEST[name]
    small_images = MODELS[name].image_size == 32
    if name.startswith('resnet'):
        return 3 if small_images else 17
    return 4 if small_images else 29


def test_every_row_has_a_known_parameter_count():
    assert {name for name, options, _ in PARAMETERS if not options} == set(MODELS)


@pytest.mark.parametrize(('name', 'options', 'parameters'), PARAMETERS, ids=str)
def test_parameter_count_is_exact(name, options, parameters):
    model = create_model(name, **options)
    assert count_parameters(model, MODELS[name].image_size) == parameters


# Minutes of compilation each, on the code of the shallower rows: make test-slow.
DEEP = {'resnet101', 'resnet152', 'resnet110', 'densenet169', 'densenet201', 'densenet161'}
DEEP |= {'densenet264', 'densenet_100_12', 'densenet_bc_100_12'}
DEEP |= {'densenet_bc_250_24', 'densenet_bc_190_40'}


@pytest.mark.parametrize(
    'name',
    [pytest.param(name, marks=pytest.mark.slow if name in DEEP else ()) for name in MODELS],
)
def test_forward_and_gradient_are_finite_and_statistics_move_in_training_only(name):
    size = _smallest(name)
    model = create_model(name, num_classes=3)
    variables = init_variables(model, jax.random.key(0), size)
    images = jax.random.normal(jax.random.key(1), (2, size, size, 3))

    @jax.jit(compiler_options=_QUICK_COMPILE)
    def evaluate_and_differentiate(variables, images):
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
    assert bool(before) == (name not in ('alexnet', 'alexnet_2012'))
    assert all((a == b).all() for a, b in zip(before, jax.tree.leaves(evaluated), strict=True))
    moved = jax.tree.leaves(updated['batch_stats'])
    assert all((a != b).any() for a, b in zip(before, moved, strict=True))
    evaluate_and_differentiate(updated, images)
    assert evaluate_and_differentiate._cache_size() == 1


# One of each stem and family: their search takes the same code for all depths.
@pytest.mark.parametrize('name', ['alexnet_2012', 'alexnet_bn', 'resnet18', 'resnet20'])
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


def test_options_change_the_network():
    count = lambda name, **options: count_parameters(create_model(name, **options), 64)  # noqa: E731
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
