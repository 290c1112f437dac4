"""Options: loading, overriding, refusing."""

import ast
import json
import pathlib
import sys

import pytest
from ml_collections import ConfigDict

import flaxcls
from flaxcls.config import (
    default_config,
    describe_options,
    differences,
    from_json,
    load_config,
    options,
    set_option,
    to_json,
)
from flaxcls.errors import UserError
from flaxcls.validation import validate

EXPERIMENTS = sorted(pathlib.Path('experiments').glob('*.py'))


@pytest.mark.parametrize(
    ('key', 'text', 'value'),
    [
        ('batch_size', '1e2', 100),
        ('batch_size', '128', 128),
        ('optimizer.learning_rate', '1e-2', 0.01),
        ('optimizer.learning_rate', '1', 1.0),
        ('augment.flip', 'true', True),
        ('augment.flip', 'False', False),
        ('model.stage_sizes', '3,4,6,3', (3, 4, 6, 3)),
        ('model.stage_sizes', '(2,)', (2,)),
        ('model.stage_sizes', [2, 2], (2, 2)),
        ('model.dropout_rate', 'None', None),
        ('model.dropout_rate', '0.3', 0.3),
        ('data.source', 'folder:/a b/c', 'folder:/a b/c'),
        ('seed', str(2**32 - 1), 2**32 - 1),
    ],
)
def test_override_takes_the_options_type(key, text, value):
    config = load_config(None, {key: text})
    got = dict(options(config))[key]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ('key', 'text', 'says'),
    [
        ('bach_size', '8', 'did you mean batch_size?'),
        ('dropout_rate', '0.1', 'model.dropout_rate'),
        ('model.nmae', 'x', 'did you mean model.name?'),
        ('batch_size', '1.5', "'1.5' is not a whole number"),
        ('batch_size', 'many', "'many' is not a whole number"),
        ('batch_size', 'inf', "'inf' is not a whole number"),
        ('optimizer.learning_rate', 'fast', 'is not a number'),
        ('augment.flip', 'perhaps', 'is not true or false'),
        ('model.stage_sizes', 'a,b', 'is not a list of numbers'),
        ('model', 'resnet50', 'no option config.model'),
    ],
)
def test_wrong_override_is_one_sentence(key, text, says):
    with pytest.raises(UserError, match='config') as caught:
        load_config(None, {key: text})
    assert says in str(caught.value)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'overrides',
    [
        {'batch_size': 0},
        {'num_epochs': 0},
        {'seed': 2**32},
        {'label_smoothing': 1.0},
        {'model.dropout_rate': 1.0},
        {'model.stage_sizes': (0, 1)},
        {'model.stage_sizes': (1.5,)},
        {'model.dtype': 'float46'},
        {'batch_norm.momentum': 1.0},
        {'batch_norm.group_size': 7},
        {'data.mean': (0.5, 0.5)},
        {'data.std': (0.5, 0.5, 0.0)},
        {'data.eval_crop_fraction': 1.5},
        {'augment.crop': 'randomresized'},
        {'optimizer.name': 'sdg'},
        {'optimizer.learning_rate': float('nan')},
        {'optimizer.momentum': 0.0},
        {'schedule.name': 'step'},
        {'schedule.milestones': (5,)},
        {'schedule.name': 'step', 'schedule.milestones': (5, 3)},
        {'schedule.name': 'step', 'schedule.milestones': (5, 20)},
        {'schedule.warmup_epochs': 20.0},
    ],
    ids=str,
)
def test_bad_or_contradicting_values_are_refused_with_their_key(overrides):
    config = load_config(None, overrides)
    with pytest.raises(UserError) as caught:
        validate(config)
    assert '\n' not in str(caught.value)
    assert any(f'config.{key}' in str(caught.value) for key in overrides)


def test_default_config_is_valid_locked_and_described():
    config = default_config()
    validate(config)
    with pytest.raises(AttributeError):
        config.model.depth = 3
    for line in describe_options().splitlines():
        assert line.strip().startswith('--config.')


def test_every_option_is_commented_on():
    undocumented = [line for line in describe_options().splitlines() if len(line.split('  ')) < 3]
    assert undocumented == []


@pytest.mark.parametrize('path', EXPERIMENTS, ids=lambda path: path.stem)
def test_experiment_is_valid_documented_and_survives_json(path):
    config = load_config(path)
    validate(config)
    assert dict(options(from_json(to_json(config)))) == dict(options(config))
    text = ast.get_docstring(ast.parse(path.read_text()))
    for part in ('python -m flaxcls.main', f'experiments/{path.name}', 'Hardware', 'Expected'):
        assert part in text, part
    assert 'Not run.' in text or 'Run;' in text


def test_json_of_another_version_is_one_sentence():
    stored = json.loads(to_json(default_config())) | {'colour': 1}
    with pytest.raises(UserError, match='colour'):
        from_json(json.dumps(stored))
    with pytest.raises(UserError, match='no JSON'):
        from_json('{')


def test_differences_names_the_changed_options():
    new = default_config()
    set_option(new, 'model.name', 'alexnet')
    assert differences(default_config(), new) == {'model.name': ('resnet20', 'alexnet')}


@pytest.mark.parametrize(
    ('body', 'says'),
    [
        ('x = 1', 'get_config'),
        ('def get_config(:', 'SyntaxError'),
        ('import flaxcls\ndef get_config():\n  c = flaxcls.default_config()\n  c.a = 1', 'config'),
    ],
)
def test_broken_config_file_is_one_sentence(tmp_path, body, says):
    path = tmp_path / 'broken.py'
    path.write_text(body)
    with pytest.raises(UserError, match=says) as caught:
        load_config(str(path))
    assert '\n' not in str(caught.value)
    with pytest.raises(UserError, match='did you mean'):
        load_config(str(tmp_path / 'brokn.py'))


def test_every_option_is_read(tiny_config, tmp_path, monkeypatch, write_images):
    """Nothing may be configurable without effect: some module other than config must look at it."""
    read = set()
    original = ConfigDict.__getitem__

    def recording(self, key):
        caller = sys._getframe(1)
        while caller.f_globals['__name__'].startswith('ml_collections'):
            caller = caller.f_back
        module = caller.f_globals['__name__']
        value = original(self, key)
        if module.startswith('flaxcls.') and module not in ('flaxcls.config', 'flaxcls.validation'):
            read.add((id(self), key))
            keep.append(self)
        return value

    keep, seen = [], set()

    def run(**overrides):
        config = tiny_config(num_epochs=1, **overrides)
        resolved = []
        from flaxcls import run_setup

        def remember(config):
            resolved.append(config)
            validate(config)

        monkeypatch.setattr(run_setup, 'validate', remember)
        with monkeypatch.context() as patch:
            patch.setattr(ConfigDict, '__getitem__', recording)
            flaxcls.train_and_evaluate(config, tmp_path / f'run{len(seen)}')
        for held in keep:
            for key in {k for i, k in read if i == id(held)}:
                seen.add((tuple(sorted(original(held, '_names') if False else held.keys())), key))

    folder = write_images({f'f/{name}/{i}.png': (9, 9) for name in 'ab' for i in range(8)})
    run()
    run(augment__crop='pad', schedule__name='step', schedule__milestones='0.5')
    run(
        data__source=f'folder:{folder / "f"}',
        augment__crop='random_resized',
        batch_size=4,
        tensorboard=True,
    )
    read_keys = {(names, key) for names, key in seen}
    default = default_config()
    for key, _ in options(default):
        *parents, name = key.split('.')
        holder = default
        for parent in parents:
            holder = holder[parent]
        assert (tuple(sorted(holder.keys())), name) in read_keys, key
