"""Sweeps that run: interrupted, killed, and on a Slurm cluster, they resume where they stopped."""

import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys

import pytest
import submitit  # noqa: F401 - imported within a test, it closes the stream that absl writes to

from flaxcls.commands import sweep
from flaxcls.errors import RunError, UserError
from flaxcls.sweeping.job import LOG_FILE
from flaxcls.training.logging import read_metrics
from tests.helpers.configs import TINY
from tests.helpers.environment import with_devices
from tests.helpers.slurm_cluster import (
    MAX_ARRAY_SIZE,
    WAIT,
    ask,
    needs_slurm,
    preempt,
    wait_for,
)


@pytest.fixture
def one_device(monkeypatch):
    """Runs are processes of their own, which take the environment of the tests."""
    monkeypatch.setenv('XLA_FLAGS', with_devices(1)['XLA_FLAGS'])


TRIED = """
'''A sweep of the tests.'''
from flaxcls.sweeping import Sweep, values

def get_sweep():
    return Sweep(
        config='experiments/digits_resnet20.py',
        overrides={overrides},
        axes={{'rate': values('optimizer.learning_rate', {rates})}},
        seeds={seeds},
    )
"""


def _write_sweep(folder, rates, seeds, **changes):
    overrides = {key: value for key, value in TINY.items() if key != 'model.name'}
    overrides |= {'model.stage_sizes': (1,)} | changes
    path = folder / 'tried.py'
    path.write_text(TRIED.format(overrides=overrides, rates=rates, seeds=seeds))
    return path


def _start(*words):
    # The tests may have been started with nohup, which children would ignore it with.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        return subprocess.Popen(
            [sys.executable, '-m', 'flaxcls', 'sweep', *map(str, words)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGHUP, before)


def _records(root):
    return {str(p): json.loads(p.read_text()) for p in sorted(root.glob('rate=*/*/record.json'))}


def _finished(root):
    """Those with their last checkpoint, which the record is ahead of."""
    return {
        path
        for path, record in _records(root).items()
        if record['step'] == record['total_steps']
        and (pathlib.Path(path).parent / 'checkpoints' / str(record['step'])).is_dir()
    }


@pytest.mark.usefixtures('one_device')
def test_a_sweep_that_was_interrupted_resumes_and_a_failed_run_stops_no_other(tmp_path, capfd):
    file = _write_sweep(
        tmp_path, [0.1, 1e30], 1,
        num_epochs=40, eval_every_epochs=40, checkpoint_every_steps=2000, log_every_steps=20,
    )  # fmt: skip
    root = tmp_path / 'runs'
    words = [f'--sweep={file}', f'--workdir={root}', '--jobs=2']
    command = _start(*words)
    good = root / 'rate=0.1/seed0'
    wait_for('the first steps', lambda: len(read_metrics(good)) > 1)
    os.killpg(command.pid, signal.SIGINT)  # As Ctrl-C at a terminal does.
    said, _ = command.communicate(timeout=WAIT)
    assert command.returncode == 130, said
    assert 'SIGINT: stopping 2 runs' in said
    assert 'SIGINT' in said.splitlines()[-1] and 'resumes' in said.splitlines()[-1]
    record = _records(root)[str(good / 'record.json')]
    saved = record['step']
    assert 0 < saved < record['total_steps']

    with pytest.raises(RunError, match='1 of 2 runs have failed'):
        sweep.main(words)
    out = capfd.readouterr().out
    assert f'Resuming at step {saved}.' in (good / LOG_FILE).read_text()
    assert _finished(root) == {str(good / 'record.json')}
    (line,) = (line for line in out.splitlines() if 'failed: ' in line)
    assert 'loss' in line and LOG_FILE in line
    for name in ('sweep.csv', 'summary.csv', 'summary.md', 'sweep.html', 'rate.png', 'rate.svg'):
        assert (root / name).stat().st_size > 100

    before = {path: path.stat().st_mtime_ns for path in root.glob('rate=*/*/record.json')}
    sweep.main([*words, '--report'])
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert '1 of 2 runs are finished' in capfd.readouterr().out
    sweep.main([*words, '--dry_run'])
    assert '2 runs, 1 of them finished' in capfd.readouterr().out

    _write_sweep(tmp_path, [0.1, 1e30], 1, num_epochs=41)
    with pytest.raises(UserError, match=re.escape('config.num_epochs is 41')):
        sweep.main(words)


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGHUP], ids=lambda n: n.name)
@pytest.mark.usefixtures('one_device')
def test_a_run_ends_with_the_process_that_has_started_it(tmp_path, number):
    file = _write_sweep(tmp_path, [0.1], 1, num_epochs=400, eval_every_epochs=400)
    root = tmp_path / 'runs'
    command = _start(f'--sweep={file}', f'--workdir={root}')
    workdir = root / 'rate=0.1/seed0'
    wait_for('the first steps', lambda: len(read_metrics(workdir)) > 1)
    if number == signal.SIGHUP:
        os.killpg(command.pid, number)  # As a terminal does that is closed.
    else:
        command.kill()
    command.wait()  # Not until its output ends, which the run still holds.
    log = workdir / LOG_FILE
    wait_for('the save', lambda: 'stopped and saved at step' in log.read_text())
    assert len(_finished(root)) == 0


def _jobs(root):
    return json.loads((root / 'slurm_jobs.json').read_text())


@needs_slurm
@pytest.mark.usefixtures('cluster', 'one_device')
def test_slurm_runs_a_sweep_as_arrays_and_a_rerun_finishes_only_the_rest(tmp_path):
    file = _write_sweep(tmp_path, [0.1, 0.05, 0.02], 2, num_epochs=2)
    root = tmp_path / 'runs'
    words = [f'--sweep={file}', f'--workdir={root}', '--executor=slurm', '--jobs=2']
    words += ['--slurm', 'partition=main']

    def finished():  # And never do more of them run than --jobs says, of whatever array.
        running = ask('squeue', '--noheader', '--array', '--states=RUNNING')
        assert len(running.splitlines()) <= 2
        return len(_finished(root))

    first = _start(*words)
    wait_for('the first run', finished)
    arrays = [job.split('_')[0] for job in _jobs(root).values()]
    assert [arrays.count(array) for array in dict.fromkeys(arrays)] == [MAX_ARRAY_SIZE] * 3
    first.kill()  # As when a connection breaks: the arrays continue.
    first.communicate()

    second = _start(*words)
    for line in second.stdout:
        if 'are in the queue already' in line:  # From now on it hears Ctrl-C.
            break
    wait_for('half of the runs', lambda: finished() >= 3)  # More than the first array.
    second.send_signal(signal.SIGINT)
    said, _ = second.communicate(timeout=WAIT)
    assert second.returncode == 130, said
    assert ask('squeue', '--noheader') == ''
    done = _finished(root)
    assert 3 <= len(done) < 6
    kept = {path: pathlib.Path(path).stat().st_mtime_ns for path in done}

    third = _start(*words)
    said, _ = third.communicate(timeout=WAIT)
    assert third.returncode == 0, said
    assert f'{len(done)} of them finished before' in said
    assert len(_finished(root)) == 6
    assert {path: pathlib.Path(path).stat().st_mtime_ns for path in done} == kept
    for line in said.splitlines():
        if match := re.match(r'\[\d/6\] rate=(\S+), seed (\d)', line):
            assert str(root / f'rate={match[1]}' / f'seed{match[2]}' / 'record.json') not in done


@needs_slurm
@pytest.mark.usefixtures('cluster', 'one_device')
def test_slurm_preempts_a_sweep_and_its_runs_end_as_the_uninterrupted_ones(tmp_path):
    file = _write_sweep(tmp_path, [0.1], 2, num_epochs=40, eval_every_epochs=40)
    root = tmp_path / 'runs'
    command = _start(f'--sweep={file}', f'--workdir={root}', '--executor=slurm')
    logs = [root / 'rate=0.1' / f'seed{seed}' / LOG_FILE for seed in range(2)]
    said = lambda text: all(log.exists() and text in log.read_text() for log in logs)  # noqa: E731
    wait_for('the first steps', lambda: said('step 5/'))
    (array,) = {job.split('_')[0] for job in _jobs(root).values()}
    preempt(array, lambda: said('stopped and saved at step'))
    printed, _ = command.communicate(timeout=WAIT)
    assert command.returncode == 0, printed

    for log in logs:
        text = log.read_text()
        stopped = int(text.split('stopped and saved at step ')[1].split()[0])
        assert f'Resuming at step {stopped}.' in text
    first_line, text = logs[0].read_text().split('\n', 1)
    straight = tmp_path / 'straight'
    words = shlex.split(first_line.removeprefix('$ ').replace(str(logs[0].parent), str(straight)))
    ended = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    (digest,) = re.findall('state sha256 ([0-9a-f]+)', ended)
    assert re.findall('state sha256 ([0-9a-f]+)', text) == [digest]
