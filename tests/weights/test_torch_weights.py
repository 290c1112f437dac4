"""Weights from PyTorch's files and back."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

import flaxcls
from benchmarks.parity_cases import make_tensor
from flaxcls.errors import UserError
from flaxcls.models.registry import MODELS, create_model
from flaxcls.training.restore import evaluate_workdir
from flaxcls.training.torch_weights import export_weights, import_weights
from flaxcls.weights.files import read_state_dict
from flaxcls.weights.state_dict import torch_layout
from tests.helpers.configs import TINY

# One of each naming, made small.
SMALL = [
    ('alexnet', {'width_multiplier': 0.05}),
    ('alexnet_2012', {'width_multiplier': 0.05}),
    ('alexnet_bn', {'width_multiplier': 0.05}),
    ('vgg16', {'width_multiplier': 0.05}),
    ('vgg16_bn', {'width_multiplier': 0.05}),
    ('mobilenet_v2', {'width_multiplier': 0.25, 'stage_sizes': (1, 1, 2)}),
    ('mobilenet_v2', {'width_multiplier': 0.25, 'stage_sizes': (1, 1), 'stem': 'deep'}),
    ('resnet18', {'width_multiplier': 0.1}),
    ('resnet50', {'width_multiplier': 0.1, 'stage_sizes': (1, 2)}),
    ('resnet50_d', {'width_multiplier': 0.1, 'stage_sizes': (1, 2)}),
    ('resnet50_v2', {'width_multiplier': 0.1, 'stage_sizes': (1, 2)}),
    ('resnet50_v2', {'width_multiplier': 0.1, 'stage_sizes': (1, 2), 'stem': 'deep'}),
    ('resnext50_32x4d', {'width_multiplier': 0.25, 'stage_sizes': (1, 2)}),
    ('resnet20', {'shortcut': 'B', 'stage_sizes': (1, 2)}),
    ('densenet121', {'growth_rate': 4, 'block_sizes': (2, 2)}),
    ('densenet121', {'growth_rate': 4, 'block_sizes': (2, 2), 'stem': 'deep'}),
    ('densenet_40_12', {'growth_rate': 4, 'block_sizes': (2, 2)}),
]


def _state_dict(name, options, *, num_classes=None, counters=True):
    model = create_model(name, num_classes=num_classes, **options)
    entries = torch_layout(model, MODELS[name].image_size)
    state = {entry.key: make_tensor(entry.key, entry.shape) for entry in entries}
    if counters:
        for key in list(state):
            if key.endswith('running_mean'):
                state[key.replace('running_mean', 'num_batches_tracked')] = np.array(7, np.int64)
    return state


def _overrides(options, **more):
    return {f'model.{key}': value for key, value in options.items()} | more


def _assert_same(left, right):
    assert left.keys() == right.keys()
    for key in left:
        assert left[key].dtype == right[key].dtype
        assert left[key].tobytes() == right[key].tobytes(), key


def test_two_arrays_of_one_name_are_refused():
    """timm's third BatchNorm of a deep stem is named as the last of a single block."""
    model = create_model('densenet121', growth_rate=4, block_sizes=(2,), stem='deep')
    with pytest.raises(UserError, match=r'norm2.* twice'):
        torch_layout(model, 32)


@pytest.mark.parametrize('counters', [True, False])
@pytest.mark.parametrize(('name', 'options'), SMALL, ids=str)
def test_import_then_export_is_the_same_file(tmp_path, name, options, counters):
    state = _state_dict(name, options, counters=counters)
    path, again = tmp_path / 'weights.safetensors', tmp_path / 'new/again.safetensors'
    safetensors.numpy.save_file(state, path)
    notes = import_weights(name, path, tmp_path / 'run', overrides=_overrides(options))
    assert notes == []
    export_weights(tmp_path / 'run', again)
    _assert_same(read_state_dict(again), state)


@pytest.mark.weekly  # Up to half a gigabyte each.
@pytest.mark.parametrize('name', list(MODELS))
def test_import_then_export_of_the_whole_network_is_the_same_file(tmp_path, name):
    test_import_then_export_is_the_same_file(tmp_path, name, {}, True)
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize('name', ['resnet50', 'densenet121', 'alexnet_bn'])
def test_every_array_has_a_name_of_its_own(name):
    entries = torch_layout(create_model(name), MODELS[name].image_size)
    assert len({entry.key for entry in entries}) == len(entries)
    for entry in entries[:50]:
        array = np.random.default_rng(0).random(entry.shape)
        np.testing.assert_array_equal(entry.to_torch(entry.from_torch(array)), array)


def _rename_as_old_densenet(key):
    for name in ('norm1', 'norm2', 'conv1', 'conv2'):
        key = key.replace(f'.{name}.', f'.{name[:4]}.{name[4]}.') if 'denselayer' in key else key
    return key


@pytest.mark.parametrize(
    ('rename', 'says'),
    [
        (lambda key: f'module.{key}', 'prefix module.'),
        (lambda key: f'_orig_mod.{key}', 'prefix _orig_mod.'),
        (_rename_as_old_densenet, 'old DenseNets'),
    ],
)
def test_other_names_of_the_same_tensors_are_understood(tmp_path, rename, says):
    options = {'growth_rate': 4, 'block_sizes': (2, 2)}
    state = _state_dict('densenet121', options)
    path = tmp_path / 'weights.safetensors'
    safetensors.numpy.save_file({rename(key): value for key, value in state.items()}, path)
    overrides = _overrides(options)
    (note,) = import_weights('densenet121', path, tmp_path / 'run', overrides=overrides)
    assert says in note
    _assert_same(export_weights(tmp_path / 'run', tmp_path / 'a.safetensors'), state)


def _lose(state):
    del state['conv1.weight']


def _add(state):
    state['conv9.weight'] = np.zeros(3, np.float32)


def _rename(state):
    state['conv_one.weight'] = state.pop('conv1.weight')


def _reshape(state):
    state['layer1.0.conv1.weight'] = state['layer1.0.conv1.weight'][:, :, :1]


@pytest.mark.parametrize(
    ('damage', 'says'),
    [
        (_lose, 'conv1.weight is missing'),
        (_add, 'conv9.weight is unexpected'),
        (_rename, 'conv1.weight is missing, conv_one.weight is unexpected'),
        (_reshape, r'layer1.0.conv1.weight is \(16, 16, 1, 3\) and should be \(16, 16, 3, 3\)'),
    ],
)
def test_file_that_does_not_fit_is_one_sentence_with_the_names(tmp_path, damage, says):
    state = _state_dict('resnet20', {})
    damage(state)
    path = tmp_path / 'weights.safetensors'
    safetensors.numpy.save_file({k: v.copy() for k, v in state.items()}, path)
    with pytest.raises(UserError, match=says) as caught:
        import_weights('resnet20', path, tmp_path / 'run')
    assert '\n' not in str(caught.value)
    assert not (tmp_path / 'run').exists()


def test_damaged_missing_and_foreign_files_are_one_sentence(tmp_path):
    path = tmp_path / 'weights.safetensors'
    safetensors.numpy.save_file(_state_dict('resnet20', {}), path)
    data = path.read_bytes()
    for size in (0, 5, 1000, len(data) - 10):
        path.write_bytes(data[:size])
        with pytest.raises(UserError, match='is damaged, or no file of weights'):
            import_weights('resnet20', path, tmp_path / 'run')
    for name, says in {
        'none.safetensors': 'there is no weights file',
        'weights.h5': 'is neither .safetensors nor .pth',
    }.items():
        with pytest.raises(UserError, match=says):
            import_weights('resnet20', tmp_path / name, tmp_path / 'run')


def test_other_number_of_classes_gets_a_new_classifier_and_is_said(tmp_path):
    state = _state_dict('resnet20', {}, num_classes=7)
    path = tmp_path / 'weights.safetensors'
    safetensors.numpy.save_file(state, path)
    import_weights('resnet20', path, tmp_path / 'seven')
    config = json.loads((tmp_path / 'seven/config.json').read_text())
    assert config['model']['num_classes'] == 7  # As the file has it.
    overrides = {'model.num_classes': 12}
    (note,) = import_weights('resnet20', path, tmp_path / 'twelve', overrides=overrides)
    assert '7 classes is replaced by a new one of 12' in note
    exported = export_weights(tmp_path / 'twelve', tmp_path / 'a.safetensors')
    assert exported.pop('fc.weight').shape == (12, 64)
    assert exported.pop('fc.bias').shape == (12,)
    del state['fc.weight'], state['fc.bias']
    _assert_same(exported, state)


def test_narrow_types_are_widened_and_said(tmp_path):
    state = _state_dict('resnet20', {}, counters=False)
    path = tmp_path / 'weights.safetensors'
    half = {key: value.astype(np.float16) for key, value in state.items()}
    safetensors.numpy.save_file(half, path)
    (note,) = import_weights('resnet20', path, tmp_path / 'run')
    assert 'float16' in note
    exported = export_weights(tmp_path / 'run', tmp_path / 'a.safetensors')
    _assert_same(exported, {key: value.astype(np.float32) for key, value in half.items()})


def test_imported_workdir_is_evaluated_and_trained_like_any_other(tmp_path, capsys):
    config = flaxcls.load_config(None, TINY | {'num_epochs': 1})
    _, history = flaxcls.train_and_evaluate(config, tmp_path / 'trained')
    path = tmp_path / 'weights.safetensors'
    exported = export_weights(tmp_path / 'trained', path)
    tracked = {int(v) for k, v in exported.items() if k.endswith('num_batches_tracked')}
    assert tracked == {22}
    import_weights('resnet20', path, tmp_path / 'imported', overrides=TINY | {'num_epochs': 1})
    values = evaluate_workdir(tmp_path / 'imported')
    assert values | {'step': 22} == {k: v for k, v in history[-1].items() if k != 'epoch'}
    assert 'come without names of classes' in capsys.readouterr().out
    with pytest.raises(UserError, match='has a run already'):
        import_weights('resnet20', path, tmp_path / 'imported')
    state, _ = flaxcls.train_and_evaluate(config, tmp_path / 'imported')
    assert int(state.step) == 22


def test_pth_files_need_torch_and_hold_the_same(tmp_path):
    state = _state_dict('resnet20', {})
    path = tmp_path / 'weights.pth'
    try:
        import torch
    except ImportError:
        path.write_bytes(b'PK')
        with pytest.raises(UserError, match=r'needs PyTorch; run  pip install'):
            read_state_dict(path)
        return
    tensors = {key: torch.from_numpy(value) for key, value in state.items()}
    torch.save({'epoch': 3, 'state_dict': tensors}, path)
    import_weights('resnet20', path, tmp_path / 'run')
    export_weights(tmp_path / 'run', tmp_path / 'again.pth')
    _assert_same(read_state_dict(tmp_path / 'again.pth'), state)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match='is damaged'):
        read_state_dict(path)
