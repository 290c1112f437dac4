"""NNX modules compute what the Linen networks compute, and train in a plain NNX loop."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn.datasets import load_digits

import flaxcls
from flaxcls.errors import UserError
from flaxcls.models.init import abstract_variables, init_variables
from flaxcls.models.registry import MODELS, create_model
from flaxcls.system.garbage_collection import garbage_collection_paused
from tests.helpers.shallow import DISTINCT, SIDE, shallow


def _loss(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _linen_gradients(model, params, batch_stats, key, count, images, labels):
    """Returns (loss, gradients, statistics), drawing as a stream of NNX does."""
    key, _ = jax.random.fold_in(key, count), count + 1

    def loss_fn(params):
        logits, updates = model.apply(
            {'params': params, 'batch_stats': batch_stats},
            images,
            train=True,
            rngs={'dropout': key},
            mutable=['batch_stats'],
        )
        return _loss(logits, labels), updates.get('batch_stats', {})

    (loss, batch_stats), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
    return loss, gradients, batch_stats


def _nnx_gradients(network, images, labels):
    """Returns (loss, gradients); the network has new statistics."""
    return nnx.value_and_grad(lambda network: _loss(network(images), labels))(network)


def _program(function, *arguments):
    """Returns the text of what is computed, apart from addresses."""
    return re.sub('0x[0-9a-f]+', '', str(jax.make_jaxpr(function)(*arguments)))


def _programs_in_linen(model, variables, draws, images, labels):
    train = functools.partial(_linen_gradients, model)
    params, batch_stats = variables['params'], variables.get('batch_stats', {})
    evaluate = lambda variables: model.apply(variables, images, train=False)  # noqa: E731
    return [
        _program(train, params, batch_stats, *draws, images, labels),
        _program(evaluate, variables),
    ]


def _programs_in_nnx(network, draws, images, labels):
    graph, params, batch_stats, *_ = nnx.split(
        network, nnx.Param, nnx.BatchStat, nnx.RngKey, nnx.RngCount
    )

    def train(params, batch_stats, key, count, images, labels):
        key, count = nnx.RngKey(key, tag='dropout'), nnx.RngCount(count, tag='dropout')
        stream = nnx.State({'rngs': {'key': key, 'count': count}})
        network = nnx.merge(graph, params, batch_stats, stream)
        loss, gradients = _nnx_gradients(network, images, labels)
        return loss, gradients, nnx.state(network, nnx.BatchStat)

    def evaluate(variables):
        return flaxcls.to_nnx(network.linen, variables)(images, train=False)

    return [
        _program(train, params, batch_stats, *draws, images, labels),
        _program(evaluate, flaxcls.to_linen(network)),
    ]


def _shapes(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


@garbage_collection_paused()
def _compare(name, **options):
    network = nnx.eval_shape(
        lambda: create_model(name, api='nnx', rngs=nnx.Rngs(0), image_size=SIDE, **options)
    )
    variables = abstract_variables(network.linen, SIDE)
    assert _shapes(flaxcls.to_linen(network)) == {'batch_stats': {}} | _shapes(variables)
    batch = jnp.zeros((2, SIDE, SIDE, 3)), jnp.zeros(2, jnp.int32)
    draws = jax.random.key(0), jnp.zeros((), jnp.uint32)
    expected = _programs_in_linen(network.linen, variables, draws, *batch)
    assert _programs_in_nnx(network, draws, *batch) == expected


# What is equal as a program is equal to the bit, and need not be compiled.
@pytest.mark.parametrize('name', DISTINCT)
def test_computes_what_linen_computes_under_the_same_names(name):
    _compare(name, num_classes=10, **shallow(name)[1])


# Tracing them takes up to a minute each.
DEEP = {name for name in MODELS if re.search('101|110|152|densenet', name)} - {'densenet_40_12'}


@pytest.mark.parametrize(
    'name',
    [pytest.param(name, marks=pytest.mark.weekly if name in DEEP else ()) for name in MODELS],
)
def test_whole_networks_compute_what_linen_computes_under_the_same_names(name):
    _compare(name)


def _equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def _close(a, b):
    """Of two compiled programs, each of which XLA may fuse, and so round, in its own way."""
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), a, b)


# With dropout, stochastic depth, and BatchNorms that share moments; and how often a pixel of the
# digits is repeated.
TRAINED = {
    'alexnet_bn': (8, {'width_multiplier': 0.0625}),
    'resnet20': (
        1,
        {'width_multiplier': 0.25, 'stage_sizes': (1, 1), 'stochastic_depth_rate': 0.5},
    ),
    'densenet_bc_100_12': (1, {'block_sizes': (1, 1), 'growth_rate': 4, 'dropout_rate': 0.2}),
}
STEPS, BATCH_SIZE = 3, 16


def _create(name='resnet20', seed=0, **changed):
    repeats, options = TRAINED[name]
    options = {'num_classes': 10, 'image_size': 8 * repeats, **options, **changed}
    return create_model(name, api='nnx', rngs=nnx.Rngs(seed), **options)


def _batches(name='resnet20'):
    """Returns (images, labels) of handwritten digits for each step."""
    digits, labels = load_digits(return_X_y=True)
    repeats, _ = TRAINED[name]
    digits = digits.reshape(-1, 8, 8, 1).repeat(repeats, 1).repeat(repeats, 2).repeat(3, 3)
    images = (digits / 8 - 1).astype(np.float32)
    starts = range(0, STEPS * BATCH_SIZE, BATCH_SIZE)
    return [(images[i : i + BATCH_SIZE], labels[i : i + BATCH_SIZE]) for i in starts]


def _make_optimizer():
    return optax.sgd(0.01, momentum=0.9)


def _nnx_step(network, optimizer, images, labels):
    loss, gradients = _nnx_gradients(network, images, labels)
    optimizer.update(network, gradients)
    return loss


def _train_in_linen(model, variables, key, batches):
    """Returns the losses and the variables after a Linen loop."""
    optimizer = _make_optimizer()
    opt_state = optimizer.init(variables['params'])

    @jax.jit
    def step(variables, opt_state, count, images, labels):
        params, batch_stats = variables['params'], variables['batch_stats']
        loss, gradients, batch_stats = _linen_gradients(
            model, params, batch_stats, key, count, images, labels
        )
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        params = optax.apply_updates(params, updates)
        return loss, {'params': params, 'batch_stats': batch_stats}, opt_state

    losses = []
    for count, batch in enumerate(batches):
        loss, variables, opt_state = step(variables, opt_state, np.uint32(count), *batch)
        losses.append(loss)
    return losses, variables


@pytest.mark.parametrize('name', TRAINED)
def test_plain_loop_has_the_losses_and_weights_of_the_linen_loop(name):
    network, batches = _create(name), _batches(name)
    expected = _train_in_linen(
        network.linen, flaxcls.to_linen(network), network.rngs.key[...], batches
    )
    optimizer = nnx.Optimizer(network, _make_optimizer(), wrt=nnx.Param)
    step = nnx.jit(_nnx_step)
    losses = [step(network, optimizer, *batch) for batch in batches]
    _close((losses, flaxcls.to_linen(network)), expected)
    assert network.rngs.count[...] == STEPS


def test_gradients_are_linens_to_the_bit_outside_of_jit():
    network, batch = _create(), _batches()[0]
    variables = flaxcls.to_linen(network)
    expected = _linen_gradients(
        network.linen,
        variables['params'],
        variables['batch_stats'],
        network.rngs.key[...],
        network.rngs.count[...],
        *batch,
    )
    loss, gradients = _nnx_gradients(network, *batch)
    statistics = flaxcls.to_linen(network)['batch_stats']
    _equal((loss, nnx.to_pure_dict(gradients), statistics), expected)


def _in_tree_mode(network, optimizer):
    return functools.partial(nnx.jit(_nnx_step, graph=False), network, optimizer)


def _in_cached_partial(network, optimizer):
    return nnx.cached_partial(nnx.jit(_nnx_step), network, optimizer)


def test_every_way_to_call_a_step_trains_alike():
    outcomes = []
    for prepare in (_in_tree_mode, _in_cached_partial):
        network = _create()
        step = prepare(network, nnx.Optimizer(network, _make_optimizer(), wrt=nnx.Param))
        outcomes.append(([step(*batch) for batch in _batches()], flaxcls.to_linen(network)))
    _close(*outcomes)


def test_split_saved_and_merged_continues_as_if_it_had_not_been():
    """Weights, statistics, what the optimizer has, and the place in the random stream."""
    first, *rest = _batches()
    step = nnx.jit(_nnx_step)
    trained = _create()
    trained = trained, nnx.Optimizer(trained, _make_optimizer(), wrt=nnx.Param)
    step(*trained, *first)
    keys, arrays = nnx.split(trained, nnx.RngKey, ...)[1:]
    arrays = jax.tree.map(np.asarray, arrays)

    def make():
        network = _create(seed=1)
        return network, nnx.Optimizer(network, _make_optimizer(), wrt=nnx.Param)

    graph, _ = nnx.split(nnx.eval_shape(make))
    restored = nnx.merge(graph, keys, arrays)
    for batch in rest:
        _equal(step(*restored, *batch), step(*trained, *batch))
    _equal(flaxcls.to_linen(restored[0]), flaxcls.to_linen(trained[0]))


def test_initial_weights_are_those_that_flaxcls_draws():
    network = _create()
    expected = init_variables(network.linen, nnx.Rngs(0).params(), 8)
    _equal(flaxcls.to_linen(network), expected)
    other = flaxcls.to_linen(_create(seed=1))
    assert (other['params']['stem']['kernel'] != expected['params']['stem']['kernel']).all()
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-6)
    jax.tree.map(compare, flaxcls.to_linen(nnx.jit(_create)()), expected)


def test_train_and_eval_are_nnxs():
    """Also of a module that holds the network; train= has the last word."""
    images, _ = _batches()[0]

    class Holder(nnx.Module):
        def __init__(self):
            self.network = _create(stochastic_depth_rate=0.0)

    holder = Holder()
    network = holder.network
    before = flaxcls.to_linen(network)
    evaluated = network.linen.apply(before, images, train=False)
    holder.eval()
    _equal(network(images), evaluated)
    holder.train()
    _equal(network(images, train=False), evaluated)
    _equal(nnx.view(network, deterministic=True)(images), evaluated)
    _equal(flaxcls.to_linen(network), before)
    assert network.rngs.count[...] == 0

    trained, updates = network.linen.apply(before, images, train=True, mutable=['batch_stats'])
    _equal(network(images), trained)
    _equal(flaxcls.to_linen(network), before | updates)
    holder.eval()
    assert (network(images, train=True) != evaluated).any()
    assert network.rngs.count[...] == 2


def test_keys_of_examples_are_taken_where_they_are_given():
    network = _create(stochastic_depth_rate=0.5)
    images, _ = _batches()[0]
    keys = jax.random.split(jax.random.key(1), len(images))
    variables = flaxcls.to_linen(network)
    expected, _ = network.linen.apply(
        variables, images, train=True, example_keys=keys, mutable=['batch_stats']
    )
    _equal(network(images, example_keys=keys), expected)
    assert network.rngs.count[...] == 0
    without = flaxcls.to_nnx(network.linen, variables)
    _equal(without(images, example_keys=keys), expected)
    with pytest.raises(UserError, match=r'rngs=nnx.Rngs\(seed\)'):
        without(images)


def test_a_trained_run_becomes_nnx_and_back(classifier):
    network = flaxcls.to_nnx(classifier.model, classifier.variables)
    network.eval()
    side = classifier.side
    images = np.random.default_rng(0).integers(0, 256, (4, side, side, 3), np.uint8)
    expected = classifier.model.apply(
        classifier.variables, classifier.normalize(images), train=False
    )
    _equal(network(classifier.normalize(images)), expected)
    np.testing.assert_allclose(expected, classifier.classify(images), rtol=1e-5)
    back = flaxcls.to_linen(network)
    assert jax.tree.structure(back) == jax.tree.structure(classifier.variables)
    _equal(back, classifier.variables)


@pytest.mark.parametrize(
    ('options', 'says'),
    [
        ({'api': 'keras'}, "api='keras' is unknown; choose 'linen' or 'nnx'"),
        ({'api': 'nnx'}, r'rngs=None: give it rngs=nnx.Rngs\(seed\)'),
        ({'api': 'nnx', 'rngs': 0}, r'rngs=0: give it rngs=nnx.Rngs\(seed\)'),
        ({'rngs': 0}, "rngs=0 has no meaning for api='linen'"),
        ({'image_size': 32}, "image_size=32 has no meaning for api='linen'"),
        ({'api': 'nnx', 'image_size': 2}, 'image_size=2 is too small for resnet20; .* 3 pixels'),
        ({'api': 'nnx', 'growth_rate': 2}, 'growth_rate=2 has no meaning for resnet20'),
    ],
)
def test_mistakes_are_a_sentence(options, says):
    with pytest.raises(UserError, match=says):
        create_model('resnet20', **options)


def test_variables_of_another_kind_are_refused():
    model = create_model('resnet20')
    with pytest.raises(UserError, match='the kind cache have no place'):
        flaxcls.to_nnx(model, {'params': {}, 'cache': {}})
