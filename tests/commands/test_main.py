"""The command line as a person meets it, in processes of its own."""

import json
import os
import pathlib
import random
import shlex
import signal
import subprocess
import sys
import time

import pytest

from flaxcls.config.files import default_workdir
from flaxcls.errors import UserError
from flaxcls.system.cli import parse_overrides
from flaxcls.training.checkpoints import fingerprint
from tests.helpers.configs import TINY
from tests.helpers.environment import COMPILED_FAST, with_devices
from tests.helpers.unpack import load_state

ENVIRONMENT = with_devices(1)  # As most users have.
# And the program that they run.
OPTIMIZED = {name: value for name, value in os.environ.items() if name not in COMPILED_FAST}
EXPERIMENT = os.path.abspath('experiments/digits_resnet20.py')
TINY_FLAGS = [f'--config={EXPERIMENT}', *(f'--config.{key}={v}' for key, v in TINY.items())]


def _start(module, *arguments, env=ENVIRONMENT, **options):
    module = ['flaxcls.main'] if module == 'main' else ['flaxcls', *module.split()]
    command = [sys.executable, '-m', *module, *map(str, arguments)]
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    return subprocess.Popen(command, env=env, **pipes, **options)


def _run(module, *arguments, **options):
    process = _start(module, *arguments, **options)
    out, err = process.communicate()
    return process.returncode, out, err


# What `python -m` runs, its arguments, and what is said of the mistake in them.
MISTAKES = [
    ('flaxcls.main', ['--config.bach_size=8'], 'did you mean batch_size?'),
    ('flaxcls.main', ['--confg=experiments/alexnet.py'], 'did you mean --config?'),
    ('flaxcls.main', ['--config=experiments/alexnte.py'], 'did you mean experiments/alexnet.py?'),
    ('flaxcls.main', ['--config.batch_size'], '--config.batch_size=VALUE'),
    ('flaxcls.main', ['--config.data.source=folder:no/such'], "no folder 'no/such'"),
    (
        'flaxcls.main',
        ['--config=experiments/resnet50.py', '--config.data.data_dir=none'],
        '--name=imagenet2012',
    ),
    (
        'flaxcls.main',
        ['--config=experiments/digits_alexnet.py', '--config.data.image_size=62'],
        'the smallest is 63 pixels',
    ),
    ('flaxcls.main', ['--config.batch_size=1439'], 'larger than the training set of 1438 examples'),
    ('flaxcls.main', ['--mode=evaluate', '--workdir=no/such'], "no run in 'no/such'"),
    (
        'flaxcls.main',
        ['--mode=evaluate', '--workdir=a', '--config=experiments/alexnet.py'],
        'leave it out',
    ),
    ('flaxcls.main', ['--checkpoint=best'], 'belongs to --mode=evaluate'),
    ('flaxcls.main', ['--mode=evalute'], "invalid choice: 'evalute'"),
    *(
        ('flaxcls', ['data', 'prepare', *arguments], says)
        for arguments, says in (
            (['--name=cifar10', '--from=idx'], '--from=idx is for --name=fashion_mnist'),
            (['--name=fashion_mnist', '--from=idx', '--manual_dir=m'], 'leave --manual_dir out'),
            (['--name=fashion_mnist', '--from=no/such'], 'no train-images-idx3-ubyte or'),
        )
    ),
    *(
        ('flaxcls', ['data', 'check', *arguments], says)
        for arguments, says in (
            (['--source=folder:no/such'], 'there is no folder'),
            (['--soruce=digits'], 'did you mean --source?'),
            (['--source=digits', '--jsn=x'], 'did you mean --json?'),
            (['--source=digits', '--json=no/such/folder/x.json'], 'there is no folder'),
        )
    ),
    ('flaxcls', ['benchmark', '--step=3'], "the argument '--step=3' is unknown"),
]
# Runs commands one after the other, each as a process would; most of what that takes is imports.
ONE_BY_ONE = """
import contextlib, io, json, runpy, sys
ends = []
for module, arguments in json.loads(sys.argv[1]):
    sys.argv, code = [module, *arguments], 0
    out, err = io.TextIOWrapper(io.BytesIO()), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_module(module, run_name='__main__', alter_sys=True)
        except SystemExit as end:
            code = end.code
    ends.append([code, err.getvalue()])
print(json.dumps(ends))
"""


@pytest.fixture(scope='module')
def ends_of_mistakes(tmp_path_factory):
    """Returns (exit code, stderr) of each of them."""
    # Relative to another folder, so that no run can come to lie in the project.
    folder = tmp_path_factory.mktemp('mistakes')
    (folder / 'experiments').symlink_to(os.path.dirname(EXPERIMENT))
    commands = [(module, arguments) for module, arguments, _ in MISTAKES]
    result = subprocess.run(
        [sys.executable, '-c', ONE_BY_ONE, json.dumps(commands)],
        cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, '')
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    'index', range(len(MISTAKES)), ids=lambda index: shlex.join(MISTAKES[index][1])
)
def test_a_users_mistake_is_one_sentence_and_exit_2(ends_of_mistakes, index):
    (code, err), says = ends_of_mistakes[index], MISTAKES[index][2]
    assert code == 2, err
    assert says in err
    assert err.startswith('error: ')
    assert err.count('\n') == 1


def test_too_little_memory_is_one_sentence_and_exit_1():
    code = 'import jax; from flaxcls.system import cli; '
    code += 'cli.run_command(lambda argv: jax.numpy.ones(2**50).sum())'
    result = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert 'choose a smaller --config.batch_size' in result.stderr


def test_help_names_every_option():
    from flaxcls.config.config_dict import default_config, flatten

    code, out, _ = _run('main', '--help')
    assert code == 0
    for key, _ in flatten(default_config()):
        assert f'--config.{key}=' in out


def test_train_in_a_relative_workdir_then_evaluate_and_report(tmp_path):
    workdir = 'a run/ünder'
    code, out, err = _run('main', *TINY_FLAGS, f'--workdir={workdir}', cwd=tmp_path)
    assert (code, err) == (0, '')
    final = next(line for line in out.splitlines() if line.startswith('final: '))
    code, out, err = _run('main', '--mode=evaluate', f'--workdir={workdir}', cwd=tmp_path)
    assert (code, err) == (0, '')
    assert out.strip() == final.replace('final:', 'step 44:')
    code, out, err = _run('report', f'--workdir={workdir}', cwd=tmp_path)
    assert code == 0, err
    assert '%' in out
    page = pathlib.Path(workdir, 'report.html')
    assert f'wrote {page};' in out
    assert (tmp_path / page).stat().st_size > 10_000
    for path in (tmp_path / workdir / 'checkpoints').glob('*/default/**/d/*'):
        path.write_bytes(path.read_bytes()[:40])
    code, out, err = _run('main', '--mode=evaluate', f'--workdir={workdir}', cwd=tmp_path)
    assert (code, out) == (1, '')
    *warnings, error = err.splitlines()
    assert error.startswith('error: ')
    assert all(line.startswith('Warning: ') for line in warnings)


def _read_until_a_step(process):
    """Returns the lines up to that of the first step."""
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith('step '):
            break
    return seen


def test_signals_save_and_the_same_command_resumes(tmp_path):
    command = [*TINY_FLAGS, '--config.num_epochs=2000', f'--workdir={tmp_path}']
    step = None
    for number, code in ((signal.SIGINT, 130), (signal.SIGUSR1, 75), (signal.SIGKILL, -9)):
        process = _start('main', *command)
        seen = _read_until_a_step(process)
        process.send_signal(number)
        _, err = process.communicate()
        assert process.returncode == code
        assert step is None or f'Resuming at step {step}.\n' in seen
        if code > 0:
            assert err.startswith(f'{number.name}: stopped and saved at step')
            assert err.count('\n') == 1
            step = int(err.split('at step ')[1].split()[0])


def _kill_after_a_save(command, folder, *, during_save, delay):
    """Kills the run `delay` seconds after its first new checkpoint, or within the next save."""
    steps = lambda: {name for name in os.listdir(folder) if name.isdecimal()}  # noqa: E731
    process = _start('main', *command, env=OPTIMIZED)
    _read_until_a_step(process)
    before = steps()
    while steps() <= before:
        assert process.poll() is None, 'the run ended before it was killed'
    time.sleep(0 if during_save else delay)
    while during_save and not any('tmp' in name for name in os.listdir(folder)):
        assert process.poll() is None, 'the run ended before a save was seen'
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_killed_three_times_ends_as_the_uninterrupted_run(tmp_path):
    command = [*TINY_FLAGS, '--config.num_epochs=8', '--config.checkpoint_every_steps=7']
    straight, killed = tmp_path / 'straight', tmp_path / 'killed'
    assert _run('main', *command, f'--workdir={straight}', env=OPTIMIZED)[0] == 0
    command.append(f'--workdir={killed}')
    rng = random.Random()
    for during_save in (False, True, False):
        delay = rng.uniform(0, 0.4)
        _kill_after_a_save(command, killed / 'checkpoints', during_save=during_save, delay=delay)
    code, out, err = _run('main', *command, env=OPTIMIZED)
    assert code == 0, err
    assert 'Resuming at step' in out
    states = [load_state(workdir) for workdir in (straight, killed)]
    assert int(states[0].step) == 8 * 22
    for part in ('params', 'batch_stats', 'opt_state'):
        assert fingerprint(getattr(states[0], part)) == fingerprint(getattr(states[1], part)), part
    evaluations = [
        (path / 'metrics.jsonl').read_text().count('val/loss') for path in (straight, killed)
    ]
    assert evaluations == [8, 8]


def test_folder_of_23_validation_images_counts_23(write_images):
    rng = random.Random(0)
    sizes = lambda: (rng.randint(20, 40), rng.randint(20, 40))  # noqa: E731
    files = {f'train/{i % 3}/{i}.png': sizes() for i in range(30)}
    files |= {f'val/{i % 3}/{i}.jpg': sizes() for i in range(23)}
    folder = write_images(files)
    flags = [*TINY_FLAGS, f'--config.data.source=folder:{folder}', '--config.batch_size=8']
    flags += ['--config.augment.crop=random_resized', '--config.augment.flip=true']
    code, out, err = _run('main', *flags, f'--workdir={folder / "run"}')
    assert code == 0, err
    assert 'of 23, val/top3_accuracy 100.00%' in out
    assert '"val/count": 23' in (folder / 'run/metrics.jsonl').read_text()


def test_unreadable_training_file_ends_the_run_with_its_name_and_exit_1(write_images):
    folder = write_images({f'{part}/{c}/{i}.png': (16, 16) for part in ('train', 'val')
                           for c in 'ab' for i in range(8)})  # fmt: skip
    path = folder / 'train/a/3.png'
    path.write_bytes(path.read_bytes()[:100])
    flags = [*TINY_FLAGS, f'--config.data.source=folder:{folder}', '--config.batch_size=8']
    code, _, err = _run('main', *flags, f'--workdir={folder / "run"}')
    assert code == 1
    assert str(path) in err
    assert err.count('\n') == 1


def test_default_workdirs_differ_where_experiments_do():
    path = 'experiments/alexnet.py'
    names = [
        default_workdir(None, {}),
        default_workdir(path, {}),
        default_workdir(f'{path}:a', {}),
        default_workdir(f'{path}:b', {}),
        default_workdir(path, {'seed': '1'}),
        default_workdir(path, {'data.source': 'folder:/a b'}),
        default_workdir(path, {'data.source': 'folder:/a_b'}),
        default_workdir(path, {'data.source': 'folder:/a/b'}),
        default_workdir(path, {'data.source': 'folder_a_b'}),
        default_workdir(path, {'data.source': f'folder:/{"x" * 200}'}),
        default_workdir(path, {'data.source': f'folder:/{"x" * 199}y'}),
    ]
    assert len(set(names)) == len(names)
    assert names[1] == 'runs/alexnet'
    for name in names:
        assert len(name) < 120
        assert name.count('/') == 1


def test_overrides_are_parsed_in_both_forms():
    assert parse_overrides(['--config.a.b=1=2', '--config.c', '3'], []) == {'a.b': '1=2', 'c': '3'}
    with pytest.raises(UserError, match='is unknown'):
        parse_overrides(['batch_size=3'], [])
