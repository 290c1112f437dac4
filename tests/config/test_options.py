"""Options: loading, overriding, refusing."""

import ast
import json
import pathlib

import pytest

from benchmarks import option_reference
from flaxcls.config.config_dict import (
    default_config,
    differences,
    flatten,
    from_json,
    set_option,
    to_json,
)
from flaxcls.config.files import load_config
from flaxcls.config.options import OPTIONS, describe_options
from flaxcls.config.validation import validate
from flaxcls.errors import UserError

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
    got = dict(flatten(config))[key]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ('key', 'text', 'says'),
    [
        ('bach_size', '8', 'did you mean batch_size?'),
        ('tensorboard', 'true', 'it is config.trackers now'),
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
        {'data.eval_crops': 'ten'},
        {'data.eval_crops': 'nine'},
        {'model.shortcut': 'E'},
        {'model.shortcut': 'none', 'model.zero_init_residual': True},
        {'model.shortcut': 'none', 'model.stochastic_depth_rate': 0.1},
        {'optimizer.learning_rate': float('nan')},
        {'optimizer.momentum': 0.0},
        {'schedule.name': 'step'},
        {'schedule.milestones': (5,)},
        {'schedule.power': 2.0},
        {'schedule.name': 'constant', 'schedule.final': 0.1},
        {'optimizer.beta1': 0.8},
        {'optimizer.name': 'lion', 'optimizer.eps': 1e-6},
        {'optimizer.name': 'lamb', 'optimizer.trust_coefficient': 0.1},
        {'schedule.name': 'step', 'schedule.milestones': (5, 3)},
        {
            'schedule.name': 'step',
            'schedule.milestones': (5, 10),
            'schedule.warmup_epochs': 6.0,
        },
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


@pytest.mark.parametrize('path', EXPERIMENTS, ids=lambda path: path.stem)
def test_experiment_is_valid_documented_and_survives_json(path):
    config = load_config(path)
    validate(config)
    assert dict(flatten(from_json(to_json(config)))) == dict(flatten(config))
    text = ast.get_docstring(ast.parse(path.read_text()))
    for part in (f'flaxcls train --config={path.stem}', 'Hardware', 'Expected'):
        assert part in text, part
    assert 'Not run.' in text or 'Run;' in text


def test_json_of_another_version_is_one_sentence():
    stored = json.loads(to_json(default_config())) | {'colour': 1}
    with pytest.raises(UserError, match='colour'):
        from_json(json.dumps(stored))
    with pytest.raises(UserError, match='config is damaged'):
        from_json('{')
    with pytest.raises(UserError, match='config is damaged'):
        from_json('[1, 2]')


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
        ('def get_config(): pass', 'returns NoneType'),
        (
            'from ml_collections import ConfigDict as C\ndef get_config(): return C()',
            "lacks 'seed'",
        ),
        (
            'from ml_collections import ConfigDict as C\ndef get_config(): return C({"a": 1})',
            "key 'a'",
        ),
    ],
)
def test_broken_config_file_is_one_sentence(tmp_path, body, says):
    path = tmp_path / 'broken.py'
    path.write_text(body)
    with pytest.raises(UserError, match=says) as caught:
        load_config(str(path))
    assert '\n' not in str(caught.value)
    with pytest.raises(UserError, match='did you mean'):
        load_config(tmp_path / 'brokn.py')


def test_variants_of_an_experiment_are_chosen_by_name(tmp_path):
    path = tmp_path / 'some.py'
    path.write_text(
        "import flaxcls\nVARIANTS = {'small': 8, 'large': 512}\n"
        "def get_config(variant='small'):\n  config = flaxcls.default_config()\n"
        '  config.batch_size = VARIANTS[variant]\n  return config\n'
    )
    assert load_config(path).batch_size == load_config(f'{path}:small').batch_size == 8
    assert load_config(f'{path}:large', {'seed': 3}).batch_size == 512
    with pytest.raises(UserError, match=r"has no variant 'larg' \(did you mean large"):
        load_config(f'{path}:larg')
    with pytest.raises(UserError, match=r"has no variants; leave ':small' out"):
        load_config(f'{EXPERIMENTS[0]}:small')
    with pytest.raises(UserError, match='there is no config file'):
        load_config(f'{tmp_path}/other.py:small')


def test_help_and_the_reference_say_something_of_every_option():
    lines, page = describe_options().splitlines(), option_reference.to_markdown()
    assert OPTIONS.keys() == dict(flatten(default_config())).keys()
    for (key, option), line in zip(OPTIONS.items(), lines, strict=True):
        comment = line.split(f'--config.{key}={option.default}')[1].strip()
        assert comment == option.help
        assert comment[0].isupper() or comment.split()[0].strip(',;') in option.choices
        assert comment.endswith('.')
        (row,) = [row for row in page.splitlines() if row.startswith(f'| `{key}`')]
        assert len(row.split(' | ')) == 4
        assert comment in row
        for choice in option.choices:
            assert f'`{choice}`' in row
        assert ('` *' in row) == option.neutral


def test_the_reference_is_up_to_date():
    written = pathlib.Path('docs/config.md').read_text(encoding='utf-8')
    assert written == option_reference.to_markdown(), f'renew it: {option_reference.COMMAND}'


def test_the_reference_is_written_by_its_command(tmp_path):
    option_reference.main([f'--out={tmp_path / "config.md"}'])
    assert (tmp_path / 'config.md').read_text() == option_reference.to_markdown()
    with pytest.raises(UserError, match='is a folder'):
        option_reference.main([f'--out={tmp_path}'])
