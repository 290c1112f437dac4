"""What a run leaves for the ledger."""

import signal
import subprocess

import pytest

import flaxcls
from flaxcls.config.config_dict import flatten, from_json, to_json
from flaxcls.config.files import load_config
from flaxcls.config.options import keys_of
from flaxcls.errors import Stopped
from flaxcls.ops import native
from flaxcls.system import host_info
from flaxcls.training.run_record import (
    RunRecord,
    experiment_hash,
    note_on_kernels,
    read_record,
    recorded_experiment,
)
from flaxcls.training.setup import build_setup, resolve
from tests.helpers.configs import EXPERIMENTS, TINY
from tests.helpers.unpack import experiment_options

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


@pytest.mark.parametrize('key', [key for key, _ in flatten(load_config(None))])
def test_the_hash_differs_between_experiments_and_not_their_runs(key):
    config = load_config(None, {key: 'resnet32'}) if key == 'model.name' else _changed(key)
    ours, default = (experiment_options(config) for config in (config, load_config(None)))
    same = experiment_hash(ours) == experiment_hash(default)
    assert same == (key in keys_of('neutral') | {'seed', 'model.num_classes', 'model.dtype'})
    assert same == (recorded_experiment(ours) == default)


@pytest.mark.parametrize('path', EXPERIMENTS)
def test_an_option_that_is_added_later_changes_no_hash(path):
    experiment, default = (experiment_options(load_config(name)) for name in (path, None))
    for key in experiment:
        before = {name: value for name, value in experiment.items() if name != key}
        same = experiment_hash(before) == experiment_hash(experiment)
        assert same == (experiment[key] == default[key])


@pytest.mark.parametrize('path', EXPERIMENTS)
def test_the_hash_survives_being_stored(path):
    config = load_config(path)
    assert experiment_options(from_json(to_json(config))) == experiment_options(config)


def test_a_record_from_before_an_option_was_added_counts_where_that_has_its_default():
    config = load_config(None, {'num_epochs': 7, 'optimizer.clip_norm': 1.0})
    experiment = experiment_options(config)
    recorded = dict(experiment)
    del recorded['ema.decay']
    assert recorded_experiment(recorded) == experiment
    assert recorded_experiment(recorded | {'no.more': 1}) != experiment
    del recorded['optimizer.clip_norm']
    assert recorded_experiment(recorded) != experiment


def test_the_hash_is_the_same_when_a_run_has_filled_in_what_was_left_open():
    config = load_config(None, TINY | {'data.image_size': None})
    resolved = resolve(config, build_setup(config))
    assert (resolved.data.image_size, resolved.model.num_classes) == (32, 10)
    assert experiment_options(resolved) == experiment_options(config)


def test_the_record_of_an_interrupted_run_has_both_parts(tmp_path, monkeypatch):
    config = load_config(None, TINY)
    with monkeypatch.context() as patch:
        _stop_at_step(patch, 3)
        with pytest.raises(Stopped):
            flaxcls.train_and_evaluate(config, tmp_path)
    first = read_record(tmp_path)
    assert first['step'] == 3 < first['total_steps'] and first['val'] is None
    state, history = flaxcls.train_and_evaluate(config, tmp_path)
    record = read_record(tmp_path)
    assert record['step'] == record['total_steps'] == int(state.step)
    assert record['val'].items() <= history[-1].items()
    assert recorded_experiment(record['options']) == experiment_options(config)
    assert record['config_hash'] == experiment_hash(experiment_options(config))
    assert record['parts'][0] == first['parts'][0]
    assert [(part['from_step'], part['to_step']) for part in record['parts']] == [
        (0, 3),
        (3, record['total_steps']),
    ]


def test_a_record_ahead_of_its_checkpoint_ends_where_the_run_resumes(tmp_path):
    config, val = load_config(None, TINY), {'val/accuracy': 0.5}
    RunRecord(tmp_path, dict(flatten(config)), from_step=0, total_steps=44).update(44, val)
    RunRecord(tmp_path, dict(flatten(config)), from_step=22, total_steps=44).update(30, None)
    record = read_record(tmp_path)
    steps = [(part['from_step'], part['to_step']) for part in record['parts']]
    assert steps == [(0, 22), (22, 30)]
    assert record['val'] == val


def test_other_kernels_than_before_are_told(tmp_path, monkeypatch):
    options = dict(flatten(load_config(None, TINY)))
    assert note_on_kernels(tmp_path) is None
    RunRecord(tmp_path, options, from_step=0, total_steps=44).update(22, None)
    assert read_record(tmp_path)['parts'][0]['kernels'] == native.status()
    assert note_on_kernels(tmp_path) is None
    monkeypatch.setattr(native, 'status', lambda: 'of another machine')
    assert 'now they are: of another machine' in note_on_kernels(tmp_path)


def test_the_commit_is_reported_where_there_is_one(tmp_path, monkeypatch):
    """Of a checkout: as it is, changed, with an experiment that is not committed, and of none."""
    package = tmp_path / 'flaxcls'
    package.mkdir()
    (tmp_path / 'experiments').mkdir()
    monkeypatch.setattr(flaxcls, '__file__', str(package / '__init__.py'))
    (package / '__init__.py').write_text('1\n')
    git = lambda *words: subprocess.run(  # noqa: E731
        ['git', '-C', str(tmp_path), '-c', 'user.name=a', '-c', 'user.email=b', *words],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    assert host_info.find_commit() is None
    git('init')
    assert host_info.find_commit() is None
    git('add', '.')
    git('commit', '-m', 'first')
    commit = git('rev-parse', '--short=12', 'HEAD')
    (tmp_path / 'README').write_text('no code')
    assert host_info.find_commit() == commit
    (tmp_path / 'experiments' / 'my\xe9.py').write_text('new')
    assert host_info.find_commit() == f'{commit}+'
    git('add', 'experiments')
    git('commit', '-m', 'second')
    (package / '__init__.py').write_text('2\n')
    assert host_info.find_commit().endswith('+')
    monkeypatch.setenv('PATH', '')
    assert host_info.find_commit() is None


def _stop_at_step(patch, step):
    from flaxcls.training import progress

    original, count = progress.Progress.step, []

    def counting(self):
        original(self)
        count.append(1)
        if len(count) == step:
            signal.raise_signal(signal.SIGINT)

    patch.setattr(progress.Progress, 'step', counting)
