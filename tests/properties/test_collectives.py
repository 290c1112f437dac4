"""What a step sends between devices, read from the compiled program."""

import jax
import pytest

from flaxcls.config.files import load_config
from flaxcls.planning.compiled import abstract_inputs, collectives
from flaxcls.training import parallel
from flaxcls.training.setup import build_setup
from tests.helpers.unpack import create_layout


def _collectives(group_size, **options):
    """Returns how often each kind of collective is in ResNet-50's compiled training step."""
    config = load_config(None, {
        'model.name': 'resnet50', 'data.source': 'synthetic:64', 'data.image_size': 32,
        'batch_size': 16, 'batch_norm.group_size': group_size, 'num_epochs': 1,
    } | options)  # fmt: skip
    setup = build_setup(config)
    layout = create_layout(config, jax.local_devices())
    assert layout.devices == 8
    step = parallel.parallelize_train_step(setup.train_step, layout)
    inputs = abstract_inputs(setup._replace(layout=layout))
    # XLA's own passes that join collectives run at any level; those that take minutes do not.
    compiled = step.lower(*inputs).compile({'xla_backend_optimization_level': 0})
    return {kind: number for kind, (number, _) in collectives(compiled.as_text()).items()}


def test_one_reduction_a_step_where_groups_lie_within_devices():
    assert _collectives(2, **{'model.stage_sizes': '1,1,1,1'}) == {'all-reduce': 1}


@pytest.mark.parametrize('group_size', [pytest.param(4, marks=pytest.mark.weekly), None])
def test_groups_over_devices_add_one_collective_a_layer_each_way(group_size):
    layers = 1 + 4 * 3  # A shortcut's BatchNorm waits for nothing that the block's last does not.
    expected = {'all-reduce': 1 + 2 * layers}
    assert _collectives(group_size, **{'model.stage_sizes': '1,1,1,1'}) == expected
