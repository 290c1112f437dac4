"""What a run leaves for the ledger."""

import signal

import pytest
from conftest import EXPERIMENTS, TINY

import flaxcls
from flaxcls.config import OBSERVING_OPTIONS, from_json, options, to_json
from flaxcls.errors import Stopped
from flaxcls.experiment_files import load_config
from flaxcls.records import experiment_hash, read_record
from flaxcls.run_setup import prepare

OTHER = {bool: lambda v: not v, int: lambda v: v + 3, float: lambda v: v + 0.5,
         str: lambda v: v + 'x', tuple: lambda v: (*v, 7.0)}  # fmt: skip


def _changed(key):
    config = load_config(None)
    *parents, name = key.split('.')
    part = config
    for parent in parents:
        part = part[parent]
    kind = part.get_type(name)
    empty = {bool: False, int: 1, float: 0.25, str: 'y', tuple: ()}[kind]
    value = part[name]
    part[name] = OTHER[kind](empty if value is None else value)
    return config


@pytest.mark.parametrize('key', [key for key, _ in options(load_config(None))])
def test_the_hash_tells_experiments_apart_and_not_their_runs(key):
    config = load_config(None, {key: 'resnet32'}) if key == 'model.name' else _changed(key)
    same = experiment_hash(config) == experiment_hash(load_config(None))
    assert same == (key in OBSERVING_OPTIONS | {'seed', 'model.num_classes'})


@pytest.mark.parametrize('path', EXPERIMENTS)
def test_the_hash_survives_being_stored(path):
    config = load_config(path)
    assert experiment_hash(from_json(to_json(config))) == experiment_hash(config)


def test_the_hash_is_the_same_when_a_run_has_filled_in_what_was_left_open():
    config = load_config(None, TINY | {'data.image_size': None})
    resolved = prepare(config).config
    assert (resolved.data.image_size, resolved.model.num_classes) == (32, 10)
    assert experiment_hash(resolved) == experiment_hash(config)


def test_the_record_of_an_interrupted_run_tells_of_both_parts(tmp_path, monkeypatch):
    config = load_config(None, TINY)
    with monkeypatch.context() as patch:
        _stop_at_step(patch, 3)
        with pytest.raises(Stopped):
            flaxcls.train_and_evaluate(config, tmp_path)
    first = read_record(tmp_path)
    assert first['step'] == 3 < first['total_steps'] and 'val' not in first
    state, history = flaxcls.train_and_evaluate(config, tmp_path)
    record = read_record(tmp_path)
    assert record['step'] == record['total_steps'] == int(state.step)
    assert record['val'].items() <= history[-1].items()
    assert record['config_hash'] == experiment_hash(config)
    assert record['parts'][0] == first['parts'][0]
    assert [(part['from_step'], part['to_step']) for part in record['parts']] == [
        (0, 3),
        (3, record['total_steps']),
    ]
    assert all(part['seconds'] > 0 for part in record['parts'])


def _stop_at_step(patch, step):
    from flaxcls import writers

    original, count = writers.Progress.step, []

    def counting(self):
        original(self)
        count.append(1)
        if len(count) == step:
            signal.raise_signal(signal.SIGINT)

    patch.setattr(writers.Progress, 'step', counting)
