"""Weights from elsewhere: the same weights whatever is around them, or refused by name."""

import argparse
import collections
import datetime
import pathlib

import numpy as np
import pytest
import safetensors.numpy

from flaxcls.errors import UserError
from flaxcls.weights.files import normalize_names, read_state_dict, require_numbers
from tests.helpers.faults import draws

STATE = {
    'conv1.weight': np.arange(54, dtype=np.float32).reshape(2, 3, 3, 3),
    'bn1.running_mean': np.array([0.5, -1], np.float32),
    'bn1.running_var': np.array([1, 2], np.float32),
}


def _assert_is_state(tensors):
    assert tensors.keys() == STATE.keys()
    for name, value in STATE.items():
        np.testing.assert_array_equal(tensors[name], value)


def test_any_prefixes_in_any_order_are_taken_off(seed, tmp_path):
    rng = np.random.default_rng(seed)
    for number in range(draws(20)):
        drawn = rng.choice(['module.', '_orig_mod.', 'model.'], rng.integers(0, 5))
        path = tmp_path / f'{number}.safetensors'
        named = {''.join(drawn) + name: value for name, value in STATE.items()}
        safetensors.numpy.save_file(named, path)
        tensors, notes = normalize_names(read_state_dict(path))
        _assert_is_state(tensors)
        assert len(notes) == len(drawn), f'seed {seed}'


def test_the_counter_of_averaged_models_is_left_out():
    named = {f'module.{name}': value for name, value in STATE.items()}
    tensors, _ = normalize_names({'n_averaged': np.array(3), **named})
    _assert_is_state(tensors)


def _change(name, value):
    changed = STATE[name].copy()
    changed.flat[-1] = value
    return STATE | {name: changed}


@pytest.mark.parametrize('name', STATE)
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_name(name, value):
    with pytest.raises(UserError, match=f'{name} in .* is not finite'):
        require_numbers(_change(name, value), pathlib.Path('a.pth'))


def test_negative_variances_are_refused_and_negative_means_not():
    require_numbers(STATE, pathlib.Path('a.pth'))
    with pytest.raises(UserError, match=r'bn1\.running_var in .* has a negative variance, -0.1'):
        require_numbers(_change('bn1.running_var', -0.1), pathlib.Path('a.pth'))


def _tensors(torch):
    return {name: torch.from_numpy(value.copy()) for name, value in STATE.items()}


SAVED = {
    'bare': lambda torch: _tensors(torch),
    'state_dict': lambda torch: {'epoch': 3, 'state_dict': _tensors(torch)},
    'model in state_dict': lambda torch: {'state_dict': {'model': _tensors(torch)}},
    'averaged': lambda torch: {
        'model': {name: 0 * value for name, value in _tensors(torch).items()},
        'model_ema': _tensors(torch),
    },
    'arguments': lambda torch: {
        'model': _tensors(torch),
        'args': argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath('a'), seen={1, 2}),
        'began': datetime.datetime(2026, 1, 2),
        'counts': collections.Counter('aab'),
    },
    'parameters': lambda torch: {
        name: torch.nn.Parameter(value) for name, value in _tensors(torch).items()
    },
    'ordered': lambda torch: collections.OrderedDict(_tensors(torch)),
    'compiled and parallel': lambda torch: {
        '_orig_mod.module.' + name: value for name, value in _tensors(torch).items()
    },
}


@pytest.mark.parametrize('form', SAVED)
def test_pth_files_are_read_in_every_form_that_scripts_save(form, tmp_path):
    torch = pytest.importorskip('torch')
    torch.save(SAVED[form](torch), tmp_path / 'a.pth')
    _assert_is_state(normalize_names(read_state_dict(tmp_path / 'a.pth'))[0])


class _Runs:
    def __reduce__(self):
        return print, ('run',)


@pytest.mark.parametrize('content', [{}, [1, 2], {0: 'a'}, {'model': _Runs()}])
def test_what_holds_no_tensors_or_would_run_code_is_a_sentence(content, tmp_path, capsys):
    torch = pytest.importorskip('torch')
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(UserError, match='is damaged, or no file of weights') as caught:
        read_state_dict(tmp_path / 'a.pth')
    assert '\n' not in str(caught.value)
    assert not capsys.readouterr().out
