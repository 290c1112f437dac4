"""The front door: which commands there are, how they are found, and what finding them costs."""

import configparser
import importlib
import os
import pathlib
import subprocess
import sys

import pytest

import flaxcls
from flaxcls.__main__ import COMMANDS, main
from flaxcls.config.config_dict import flatten
from flaxcls.config.files import default_workdir, list_experiments, load_config
from flaxcls.errors import UserError
from flaxcls.sweeping.expand import load_sweep

FOLDER = pathlib.Path(flaxcls.__file__).parent
SHARED = {'__init__', 'flags'}  # Of flaxcls/commands, no commands themselves.
# What takes a tenth of a second or more, and what comes with it.
SLOW = {
    *(
        'numpy',
        'ml_collections',
        'jax',
        'flax',
        'optax',
        'orbax',
        'grain',
        'tensorflow_datasets',
        'scipy',
        'sklearn',
    ),
    *('matplotlib', 'cv2', 'torch', 'tensorflow', 'uvicorn', 'submitit'),
}


def _modules_after_help(names):
    code = f"""
import contextlib, io, sys
from flaxcls.__main__ import main
for name in {sorted(names)}:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main([*name.split(), '--help'])
        sys.exit('the help of ' + name + ' does not end')
print(*sys.modules)
"""
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_help_of_every_command_imports_nothing_slow():
    assert not _modules_after_help(COMMANDS) & SLOW


@pytest.mark.parametrize('name', COMMANDS)
def test_help_shows_how_the_command_is_called(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([*name.split(), '--help'])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f'usage: flaxcls {name} ')
    assert f'\n  flaxcls {name}' in out, 'the docstring has no example'
    assert max(map(len, out.partition('\noptions:\n  --config.')[0].splitlines())) <= 100


def test_every_module_is_a_command_that_main_alone_runs():
    modules = {path.stem for path in (FOLDER / 'commands').glob('*.py')}
    assert modules - SHARED == {module for module, _ in COMMANDS.values()}
    for module in modules:
        assert '__name__' not in (FOLDER / 'commands' / f'{module}.py').read_text()


@pytest.mark.parametrize('argv', [[], ['--help'], ['-h'], ['help']], ids=str)
def test_help_lists_every_command(argv, capsys):
    main(argv)
    lines = capsys.readouterr().out.splitlines()
    for name, (_, what) in COMMANDS.items():
        assert any(line.split() == [*name.split(), *what.split()] for line in lines)


@pytest.mark.parametrize('argv', [['data'], ['weights', '--help']], ids=str)
def test_help_of_a_group_lists_its_commands(argv, capsys):
    main(argv)
    out = capsys.readouterr().out
    assert out.startswith(f'usage: flaxcls {argv[0]} COMMAND')
    listed = [line.split('  ')[1] for line in out.splitlines() if line.startswith('  ')]
    assert listed == [name for name in COMMANDS if name.startswith(f'{argv[0]} ')]


@pytest.mark.parametrize(
    ('argv', 'says'),
    [
        (['trian'], r"no command 'trian' \(did you mean train\?\); flaxcls --help lists them"),
        (['data', 'chek'], r'\(did you mean data check\?\); flaxcls data --help lists them'),
        (['data_check'], r'\(did you mean data check\?\)'),
        (['xyz'], "no command 'xyz'; flaxcls --help"),
        (['--config=resnet50'], 'name a command before --config=resnet50, such as train'),
        (['main', '--config=a'], 'flaxcls train --config=a$'),
        (['check_data', '--source=folder:a b'], "flaxcls data check '--source=folder:a b'$"),
        (['show-data'], 'flaxcls data show$'),
        (['prepare_data', '--name=cifar10'], 'flaxcls data prepare --name=cifar10$'),
        (['torch_weights', 'export', '--workdir=a'], 'flaxcls weights export --workdir=a$'),
        (['recalibrate'], 'flaxcls precise-bn$'),
        (['precise_bn'], 'flaxcls precise-bn$'),
        (['report', '--workdri=a', '--workdir=b'], r'did you mean --workdir\?'),
        (
            ['evaluate', '--workdri=a'],
            r'--workdri is unknown \(did you mean --workdir\?\); flaxcls',
        ),
        (['weights', 'import'], 'required: --model, --weights, --workdir; flaxcls weights import'),
    ],
    ids=str,
)
def test_what_is_not_a_command_is_reported_with_the_one_that_is_meant(argv, says):
    with pytest.raises(UserError, match=says) as error:
        main(argv)
    assert '\n' not in str(error.value)


def test_the_module_and_the_script_are_one(capsys):
    result = subprocess.run(
        [sys.executable, '-m', 'flaxcls', '--version'], capture_output=True, text=True, check=True
    )
    assert result.stdout == f'flaxcls {flaxcls.__version__}\n'
    main(['--version'])
    assert capsys.readouterr().out == result.stdout
    setup = configparser.ConfigParser()
    setup.read('setup.cfg')
    (script,) = setup['options.entry_points']['console_scripts'].split('\n')[1:]
    name, _, place = script.partition(' = ')
    module, _, function = place.partition(':')
    assert (name, module) == ('flaxcls', 'flaxcls.__main__')
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize('module', ['flaxcls.main', 'flaxcls train'])
def test_train_without_config_and_workdir_prints_its_help(module, tmp_path):
    command = [sys.executable, '-m', *module.split()]
    environment = os.environ | {'PYTHONPATH': str(FOLDER.parent)}
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith('usage: ')
    assert '--config.batch_size=' in result.stdout
    assert not list(tmp_path.iterdir())


def test_configs_lists_what_is_there(capsys):
    main(['configs'])
    out = capsys.readouterr().out
    for kind, folder in (('config', 'experiments'), ('sweep', 'experiments/sweeps')):
        listed = {entry.name: entry for entry in list_experiments(kind)}
        assert listed.keys() == {path.stem for path in pathlib.Path(folder).glob('*.py')}
        for name, title, variants in listed.values():
            assert f'  {name} ' in out
            assert len(title) > 20
            assert f' {title}\n' in out
            for variant in variants:
                assert f'{name}:{variant}' in out
    assert next(e for e in list_experiments() if e.name == 'resnet_strikes_back').variants


@pytest.mark.parametrize('elsewhere', [False, True])
def test_an_experiment_is_found_by_its_name_and_its_path(elsewhere, tmp_path, monkeypatch):
    path = os.path.abspath('experiments/digits_resnet20.py')
    if elsewhere:
        monkeypatch.chdir(tmp_path)
    spellings = ['digits_resnet20', 'experiments/digits_resnet20.py', path]
    expected = dict(flatten(load_config(path)))
    for spelling in spellings:
        assert dict(flatten(load_config(spelling))) == expected
        assert default_workdir(spelling, {}) == 'runs/digits_resnet20'
    assert load_config('resnet_strikes_back:a3').data.train_image_size == 160
    for spelling in ('shortcuts', 'experiments/sweeps/shortcuts.py'):
        assert load_sweep(spelling).title.startswith('Depth with and without')


def test_an_own_file_is_taken_by_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path('resnet50.py').write_text(
        'import flaxcls\ndef get_config():\n'
        '    config = flaxcls.load_config("resnet50")\n    config.seed = 7\n    return config\n'
    )
    assert load_config('resnet50.py').seed == load_config('./resnet50.py').seed == 7
    assert load_config('resnet50').seed == 0
    assert dict(flatten(load_config('default'))) == dict(flatten(load_config(None)))


@pytest.mark.parametrize(
    ('path', 'says'),
    [
        ('resnet5', r"no config 'resnet5' \(did you mean resnet50\?\); flaxcls configs lists"),
        ('resnet50:a1', "'resnet50' has no variants"),
        ('resnet_strikes_back:a9', r"no variant 'a9' \(did you mean a\d\?\)"),
        ('experiments/resnet5.py', r'\(did you mean experiments/resnet50.py\?\)'),
        ('other/resnet50.py', "no config file 'other/resnet50.py'"),
        ('shortcuts', "no config 'shortcuts'"),
    ],
)
def test_what_is_not_an_experiment_is_reported_with_the_closest(path, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says):
        load_config(path)
