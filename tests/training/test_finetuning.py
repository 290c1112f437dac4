"""Starting from other weights, and leaving some as they are."""

import functools

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict

import flaxcls
from benchmarks.parity_cases import make_tensor
from flaxcls.config.config_dict import set_option
from flaxcls.config.files import load_config
from flaxcls.errors import UserError
from flaxcls.models.init import abstract_variables
from flaxcls.models.patterns import matches
from flaxcls.models.registry import MODELS, create_model
from flaxcls.training.checkpoint_files import read_run_weights
from flaxcls.training.freezing import merge_frozen, split_frozen
from flaxcls.training.setup import build_setup
from flaxcls.training.torch_weights import import_weights
from flaxcls.weights.state_dict import torch_layout
from tests.helpers.configs import TINY
from tests.helpers.unpack import load_state

# ResNet-18 with two stages of one block, and few channels.
SMALL = {'model.stage_sizes': '1,1', 'model.width_multiplier': 0.125}


@pytest.fixture(scope='module')
def imported(tmp_path_factory):
    """A workdir with a small ResNet-18 of 1000 classes, imported from a file of torchvision's."""
    folder = tmp_path_factory.mktemp('imported')
    model = create_model('resnet18', stage_sizes=(1, 1), width_multiplier=0.125)
    entries = torch_layout(model, 224)
    state = {entry.key: make_tensor(entry.key, entry.shape) for entry in entries}
    state['bn1.bias'][0] = -0.0  # Adding an update of zero would make it 0.0.
    safetensors.numpy.save_file(state, folder / 'weights.safetensors')
    import_weights('resnet18', folder / 'weights.safetensors', folder / 'run', overrides=SMALL)
    return folder / 'run'


def _config(workdir, **overrides):
    overrides = {key.replace('__', '.'): value for key, value in overrides.items()}
    return load_config(
        None,
        {k: v for k, v in TINY.items() if not k.startswith('model')}
        | SMALL
        | {'model.name': 'resnet18', 'init_from': str(workdir)}
        | {'data.image_size': 32, 'batch_size': 256, 'num_epochs': 1}
        | overrides,
    )


def test_frozen_backbone_keeps_every_byte_for_five_steps(imported, tmp_path, capsys):
    config = _config(
        imported, freeze='stem, bn_stem, stage*', optimizer__decay_all=True,
        # The mean of seven equal numbers may differ from them in the last bit.
        batch_size=252, parallel__accumulation_steps=7, batch_norm__group_size=18,
    )  # fmt: skip
    state, history = flaxcls.train_and_evaluate(config, tmp_path)
    assert int(state.step) == 5
    assert 'has other classes, and a new one is trained' in capsys.readouterr().out
    before = flatten_dict(_saved(imported))
    after = flatten_dict({'params': state.params, 'batch_stats': state.batch_stats})
    assert before.keys() == after.keys()
    for path, leaf in after.items():
        if path[1] != 'head':
            assert np.asarray(leaf).tobytes() == before[path].tobytes(), path
    initial = build_setup(config).init_state()
    changed = jax.tree.map(
        lambda a, b: bool((a != b).any()), initial.params['head'], state.params['head']
    )
    assert all(jax.tree.leaves(changed))
    # Nothing is kept for what is not trained.
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) < 2000
    _, history_again = flaxcls.train_and_evaluate(config, tmp_path)
    assert history_again == history


def _saved(workdir):
    return read_run_weights(workdir)[1]


def test_without_freezing_all_weights_start_there_and_move(imported, tmp_path):
    config = _config(imported, optimizer__learning_rate=1e-3)
    initial = flatten_dict(build_setup(config).init_state().params)
    saved = flatten_dict(_saved(imported)['params'])
    for path, leaf in initial.items():
        assert path[0] == 'head' or (leaf == saved[path]).all()
    state, _ = flaxcls.train_and_evaluate(config, tmp_path)
    for path, leaf in flatten_dict(state.params).items():
        assert (leaf != initial[path]).any(), path


def test_resuming_needs_the_first_weights_no_more(imported, tmp_path):
    import shutil

    shutil.copytree(imported, tmp_path / 'first')
    config = _config(tmp_path / 'first', freeze='stage1*')
    state, _ = flaxcls.train_and_evaluate(config, tmp_path / 'run')
    shutil.rmtree(tmp_path / 'first')
    config.num_epochs = 2
    longer, _ = flaxcls.train_and_evaluate(config, tmp_path / 'run')
    assert int(longer.step) == 2 * int(state.step)
    assert int(load_state(tmp_path / 'run').step) == int(longer.step)


@pytest.mark.parametrize(
    ('overrides', 'says'),
    [
        ({'init_from': 'no/such/run'}, "there is no run in 'no/such/run'"),
        ({'model.width_multiplier': 0.25}, 'is another network: bn_stem/mean is'),
        ({'model.name': 'resnet50'}, 'is another network'),
        ({'freeze': 'stagee1*'}, "'stagee1\\*' fits no layer .did you mean stage"),
        ({'freeze': 'stem,layer4'}, "'layer4' fits no layer"),
        ({'freeze': '*'}, 'leaves nothing to train'),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(imported, tmp_path, overrides, says):
    config = _config(imported)
    for key, value in overrides.items():
        set_option(config, key, value)
    with pytest.raises(UserError, match=says) as caught:
        flaxcls.train_and_evaluate(config, tmp_path)
    assert '\n' not in str(caught.value)


def test_classifier_may_learn_faster(imported):
    moved = {}
    for rules in ('', 'head:lr=10'):
        config = _config(
            imported,
            optimizer__learning_rate=1e-3,
            optimizer__rules=rules,
            optimizer__momentum=0.0,
            optimizer__nesterov=False,
        )
        setup = build_setup(config)
        params = setup.init_state().params
        gradients = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), params)
        updates, _ = setup.optimizer.update(gradients, setup.optimizer.init(params), params)
        moved[rules] = updates
    for path, update in flatten_dict(moved['head:lr=10']).items():
        factor = 10 if path[0] == 'head' else 1
        np.testing.assert_allclose(update, factor * flatten_dict(moved[''])[path], rtol=1e-6)


@functools.cache
def _abstract_params(name):
    return abstract_variables(create_model(name), MODELS[name].image_size)['params']


@pytest.mark.parametrize('name', ['alexnet', 'resnet50', 'densenet121'])
@pytest.mark.parametrize('patterns', [(), ('*1*',), ('head', 's*')])
def test_splitting_and_merging_are_inverse(name, patterns):
    params = _abstract_params(name)
    trained, frozen = split_frozen(params, patterns)
    assert merge_frozen(trained, frozen) == params
    flat_trained, flat_frozen = flatten_dict(trained), flatten_dict(frozen)
    for path, leaf in flatten_dict(params).items():
        is_frozen = matches('/'.join(path), patterns)
        assert flat_frozen[path] == (leaf if is_frozen else None)
        assert flat_trained[path] == (None if is_frozen else leaf)
