"""One experiment, one result: the layout of devices is not part of it.

In float64, so that a wrong rule cannot hide behind rounding, and in float32 as people train.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcls.config.files import load_config
from flaxcls.errors import UserError
from flaxcls.training import parallel
from flaxcls.training.metrics import summarize
from flaxcls.training.setup import build_setup, resolve
from tests.helpers.unpack import (
    create_layout,
    make_eval_batches,
    make_eval_step,
    make_train_batches,
    make_train_step,
)

BATCH, STEPS = 32, 8
FAMILIES = {
    'alexnet_bn': {'model.width_multiplier': 0.02, 'data.image_size': 63},  # With dropout.
    'resnet20': {
        'model.stage_sizes': '1,1',
        'model.width_multiplier': 0.25,
        'model.stochastic_depth_rate': 0.5,
    },
    'densenet_bc_100_12': {
        'model.block_sizes': '1,1',
        'model.growth_rate': 4,
        'model.dropout_rate': 0.2,
    },
}
LAYOUTS = [
    (devices, mode, accumulation)
    for devices, mode, accumulation in itertools.product((1, 2, 4, 8), ('jit', 'pmap'), (1, 2, 4))
    if (devices, mode, accumulation) != (1, 'jit', 1)
]
TOLERANCES = {'float64': 1e-9, 'float32': 2e-4}
# In float32 a gradient that cancels out has no digit in common, and a ReLU or a maximum may fall on
# its other side by rounding: so the momentum is not compared, and the learning rate is low.
COMPARED = {
    'float64': ('params', 'batch_stats', 'ema', 'opt_state'),
    'float32': ('params', 'batch_stats', 'ema'),
}
# Of these, one for each family, which hold most values of each axis; the rest are slow tests.
FAST = {
    ('resnet20', 8, (2, 'pmap', 4), 'float64'),
    ('densenet_bc_100_12', None, (4, 'jit', 1), 'float64'),
    ('alexnet_bn', 16, (8, 'jit', 1), 'float64'),
}


@functools.cache
def _setup(name, group_size):
    options = {
        'data.image_size': 8, 'batch_size': BATCH, 'num_epochs': 1, 'model.name': name,
        'batch_norm.group_size': group_size, 'optimizer.learning_rate': 0.005, 'ema.decay': 0.9,
        'augment.crop': 'pad', 'augment.pad': 1, 'augment.flip': True,
        'augment.mixup': 0.4, 'augment.cutmix': 1.0, 'augment.repeats': 2,
    }  # fmt: skip
    config = load_config(None, options | FAMILIES[name])
    setup = build_setup(config)
    return resolve(config, setup), setup


def _train(config, setup, dtype, layout):
    """Returns the state and the sums of each step and of an evaluation, in `dtype`."""
    devices, mode, accumulation = layout
    config = config.copy_and_resolve_references()
    config.parallel.mode, config.parallel.accumulation_steps = mode, accumulation
    layout = create_layout(config, jax.local_devices()[:devices])
    model = setup.model.clone(dtype=dtype)
    step = parallel.parallelize_train_step(make_train_step(config, model, setup.optimizer), layout)
    widen = lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x  # noqa: E731
    state = jax.tree.map(widen, setup._replace(layout=layout).init_state())
    batches = make_train_batches(config, setup.dataset.train)(0)
    sums = []
    for _, batch in zip(
        range(STEPS), parallel.microbatches_to_devices(batches, layout), strict=False
    ):
        state, step_sums = step(state, batch)
        sums.append(step_sums)
    evaluate = parallel.parallelize_eval_step(make_eval_step(config, model), layout)
    batches = parallel.to_devices(make_eval_batches(config, setup.dataset.val)(), layout)
    return jax.device_get(
        (state, sums, [evaluate(state.eval_variables, batch) for batch in batches])
    )


@functools.cache
def _on_one_device(name, group_size, dtype):
    return _train(*_setup(name, group_size), dtype, (1, 'jit', 1))


def _fits(group_size, devices, accumulation):
    local = BATCH // devices // accumulation
    span = (group_size or BATCH) / local
    return local >= 2 and span <= devices  # Examples that are repeated twice stay together.


def _cases():
    cases = itertools.product(FAMILIES, (8, 16, None), LAYOUTS, TOLERANCES)
    for name, group_size, layout, dtype in cases:
        if _fits(group_size, layout[0], layout[2]):
            case = (name, group_size, layout, dtype)
            marks = () if case in FAST else pytest.mark.weekly
            yield pytest.param(*case, marks=marks, id='-'.join(map(str, _flat(case))))


def _flat(case):
    """Returns the case with the layout's values in its place."""
    name, group_size, layout, dtype = case
    return name, group_size, *layout, dtype


def test_fast_cases_hold_most_values_of_each_axis():
    fast = [_flat(case.values) for case in _cases() if not case.marks]
    assert len(fast) == len(FAST)
    assert [set(axis) for axis in zip(*fast, strict=True)] == [
        set(FAMILIES), {8, 16, None}, {2, 4, 8}, {'jit', 'pmap'}, {1, 4}, {'float64'}
    ]  # fmt: skip


@pytest.mark.parametrize(('name', 'group_size', 'layout', 'dtype'), list(_cases()))
def test_every_layout_trains_alike(name, group_size, layout, dtype):
    with jax.enable_x64(dtype == 'float64'):
        expected = _on_one_device(name, group_size, dtype)
        got = _train(*_setup(name, group_size), dtype, layout)
    initial = _setup(name, group_size)[1].init_state()
    for part in COMPARED[dtype]:
        trees = [getattr(state, part) for state in (got[0], expected[0], initial)]
        for leaves in zip(*map(jax.tree.leaves, trees), strict=True):
            _assert_close(*leaves[:2], TOLERANCES[dtype])
            assert (leaves[1] != leaves[2]).any()  # Everything has moved.
    for got_sums, expected_sums in zip(got[1] + got[2], expected[1] + expected[2], strict=True):
        _assert_close(got_sums['loss_sum'], expected_sums['loss_sum'], TOLERANCES[dtype])
        for key in ('count', 'correct', 'correct_top_k'):
            # In float32, rounding may decide between two classes that are as likely.
            assert dtype == 'float32' or got_sums[key] == expected_sums[key], key
    assert sum(sums['count'] for sums in got[2]) == 359


def _assert_close(got, expected, tolerance):
    """The error is small beside the largest number of the array."""
    error = np.abs(np.asarray(got, np.float64) - np.asarray(expected, np.float64)).max()
    assert error <= tolerance * np.abs(expected).max() + 1e-30


@pytest.mark.parametrize('devices', [1, 2, 3, 4, 8])
@pytest.mark.parametrize('mode', ['jit', 'pmap'])
def test_23_examples_are_counted_once_on_any_layout(devices, mode):
    batch_size = 9 if devices == 3 else 8
    options = {'model.stage_sizes': '1', 'model.width_multiplier': 0.25, 'data.image_size': 8}
    config = load_config(None, options | {'batch_size': batch_size, 'parallel.mode': mode})
    setup = build_setup(load_config(None, options | {'batch_size': 8}))
    layout = create_layout(config, jax.local_devices()[:devices])
    config.model.num_classes = 10
    few = type(setup.dataset.val)(setup.dataset.val.images[:23], setup.dataset.val.labels[:23])
    evaluate = parallel.parallelize_eval_step(make_eval_step(config, setup.model), layout)
    state = setup._replace(layout=layout).init_state()
    batches = parallel.to_devices(make_eval_batches(config, few)(), layout)
    result = summarize([evaluate(state.eval_variables, batch) for batch in batches], 'val', 5)
    assert result['val/count'] == 23
    logits = setup.model.apply(state.eval_variables, _normalized(setup, few), train=False)
    assert result['val/accuracy'] == (np.argmax(logits, -1) == few.labels).mean()


def _normalized(setup, split):
    setup = setup._replace(dataset=setup.dataset.replace(val=split))
    images = np.concatenate([b['image'] for b in setup.make_eval_batches()()])
    return setup.normalize(images[: len(split)])


@pytest.mark.parametrize(
    ('options', 'devices', 'says'),
    [
        ({'batch_size': 30}, 4, 'cannot be shared by 4 devices; choose 28 or 32'),
        (
            {'parallel.accumulation_steps': 3},
            4,
            'by 4 devices x 3 accumulation steps; choose 24 or 36',
        ),
        ({'parallel.accumulation_steps': 2}, 4, r'None: the whole batch\) asks for 32 .* 4 x 1'),
        ({'batch_norm.group_size': 16, 'parallel.accumulation_steps': 4}, 2, '2 x 2 would do'),
        ({'augment.repeats': 8, 'augment.mixup': 0.2}, 8, 'choose config.batch_size=64 or larger'),
    ],
    ids=str,
)
def test_layouts_that_give_another_result_are_refused(options, devices, says):
    config = load_config(None, {'batch_size': BATCH} | options)
    with pytest.raises(UserError, match=says) as caught:
        build_setup(config, devices=jax.local_devices()[:devices])
    assert '\n' not in str(caught.value)


def test_groups_matter_in_training_and_to_networks_with_batch_norm_alone():
    overrides = {'parallel.accumulation_steps': 2, 'data.image_size': 63, 'batch_size': BATCH}
    overrides |= {'model.width_multiplier': 0.02}
    for name in ('alexnet', 'alexnet_bn'):
        config = load_config(None, overrides | {'model.name': name})
        build_setup(config, for_training=False)
        if name == 'alexnet':
            assert build_setup(config).layout.accumulation_steps == 2
        else:
            with pytest.raises(UserError, match='asks for 32 examples at once'):
                build_setup(config)
