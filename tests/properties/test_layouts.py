"""One experiment, one result: the layout of devices is no part of it."""

import jax
import numpy as np
import pytest

from flaxcls import parallel, steps
from flaxcls.config import load_config
from flaxcls.data.pipeline import make_eval_batches, make_train_batches
from flaxcls.metrics import summarize
from flaxcls.run_setup import prepare

FAMILIES = {
    'alexnet_bn': {'model.width_multiplier': 0.03, 'data.image_size': 63},
    'resnet20': {'model.stage_sizes': '1,1', 'model.width_multiplier': 0.25},
    'densenet_bc_100_12': {
        'model.block_sizes': '1',
        'model.dropout_rate': 0.2,
        'augment.mixup': 0.4,
        'augment.cutmix': 1.0,
        'augment.repeats': 2,
    },
}


def _train(setup, devices, num_steps):
    mesh = parallel.create_mesh(jax.devices()[:devices])
    setup = setup._replace(mesh=mesh)
    step = steps.make_train_step(setup.config, setup.model, setup.optimizer)
    step = parallel.parallelize_train_step(step, mesh)
    batches = make_train_batches(setup.config, setup.source.train)(0)
    state, losses = setup.init_state(), []
    for _, batch in zip(range(num_steps), parallel.to_devices(batches, mesh), strict=False):
        state, sums = step(state, batch)
        losses.append(float(sums['loss_sum']))
    assert step._cache_size() == 1  # The state that comes out compiles nothing new.
    evaluate = parallel.parallelize_eval_step(steps.make_eval_step(setup.config, setup.model), mesh)
    batches = make_eval_batches(setup.config, setup.source.val)()
    sums = [evaluate(state, batch) for batch in parallel.to_devices(batches, mesh)]
    return state, losses, summarize(sums, 'val', 5)


@pytest.mark.parametrize(
    ('name', 'group_size'),
    [('alexnet_bn', 8), ('densenet_bc_100_12', None)] + [('resnet20', g) for g in (4, 8, None)],
)
def test_one_two_and_four_devices_train_alike(name, group_size):
    """With dropout and augmentation; groups within a device, across some, and across all."""
    overrides = {'data.image_size': 8, 'batch_size': 16, 'augment.crop': 'pad', 'augment.pad': 1}
    overrides |= {'augment.flip': True, 'model.name': name, 'optimizer.learning_rate': 0.02}
    overrides |= {'batch_norm.group_size': group_size} | FAMILIES[name]
    setup = prepare(load_config(None, overrides))
    state, losses, val = _train(setup, 1, 5)
    assert losses[0] != losses[-1]
    for devices in (2, 4):
        other, other_losses, other_val = _train(setup, devices, 5)
        np.testing.assert_allclose(other_losses, losses, rtol=2e-4)
        for got, expected in zip(jax.tree.leaves(other), jax.tree.leaves(state), strict=True):
            scale = np.abs(expected).max() + 1e-6
            np.testing.assert_allclose(got / scale, expected / scale, atol=2e-3)
        assert other_val['val/count'] == val['val/count'] == 360
        np.testing.assert_allclose(other_val['val/loss'], val['val/loss'], rtol=1e-3)


@pytest.mark.parametrize('devices', [1, 2, 4])
def test_23_examples_in_batches_of_8_are_counted_once_on_any_layout(devices):
    overrides = {'model.stage_sizes': '1', 'batch_size': 8, 'data.image_size': 8}
    setup = prepare(load_config(None, overrides))
    mesh = parallel.create_mesh(jax.devices()[:devices])
    val = setup.source.val
    few = type(val)(val.images[:23], val.labels[:23])
    evaluate = parallel.parallelize_eval_step(steps.make_eval_step(setup.config, setup.model), mesh)
    state = setup._replace(mesh=mesh).init_state()
    batches = parallel.to_devices(make_eval_batches(setup.config, few)(), mesh)
    result = summarize([evaluate(state, batch) for batch in batches], 'val', 5)
    assert result['val/count'] == 23
    logits = setup.model.apply(
        {'params': state.params, 'batch_stats': state.batch_stats},
        _normalized(setup, few),
        train=False,
    )
    assert result['val/accuracy'] == (np.argmax(logits, -1) == few.labels).mean()


def _normalized(setup, split):
    from flaxcls.data.augment import make_normalize

    images = np.concatenate([b['image'] for b in make_eval_batches(setup.config, split)()])
    return make_normalize(setup.config)(images[: len(split)])
