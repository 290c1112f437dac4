"""Sweeps: jobs, and what runs them, with commands that take the place of runs and of Slurm."""

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys

import pytest
import submitit  # noqa: F401 - imported within a test, it closes the stream that absl writes to

from flaxcls.commands import sweep
from flaxcls.errors import Stopped, UserError
from flaxcls.sweeping import executors, expand, page, slurm
from flaxcls.sweeping import run as run_lib
from flaxcls.sweeping.definition import Sweep
from flaxcls.sweeping.job import LOG_FILE
from tests.helpers.slurm_cluster import wait_for
from tests.helpers.small_sweep import SMALL

JOB = """
import json, sys
from flaxcls.sweeping.job import Job
command, workdir, starter = json.loads(sys.argv[1])
Job(command, workdir, environment={}, starter=starter)()
"""
# A run that saves when it is asked to stop.
RUN = """
import signal, sys, time
def stop(*_):
    print('SIGTERM: stopped and saved at step 1 of 2', flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
print('began', flush=True)
time.sleep(100)
"""


def _write_command(folder, name, text):
    path = folder / name
    path.write_text(f'#!/bin/sh\n{text}\n')
    path.chmod(0o755)


@pytest.fixture
def commands_of_slurm(tmp_path, monkeypatch):
    """A folder of PATH, in which a requeue ends the job that asks for it."""
    folder = tmp_path / 'bin'
    folder.mkdir()
    _write_command(folder, 'squeue', 'echo RUNNING')
    _write_command(folder, 'scontrol', f'echo "$@" >> {tmp_path}/requeued; kill -9 $PPID')
    monkeypatch.setenv('PATH', str(folder), prepend=os.pathsep)
    monkeypatch.setenv('SLURM_JOB_ID', '17')
    return folder


@contextlib.contextmanager
def _started(workdir, starter):
    words = json.dumps([[sys.executable, '-c', RUN], str(workdir), starter])
    job = subprocess.Popen([sys.executable, '-c', JOB, words])
    try:
        yield job
    finally:
        job.kill()
        job.wait()


def _wait_for_line(workdir, line):
    log = workdir / LOG_FILE
    lasts = lambda: log.read_text().splitlines()[-1:] if log.exists() else []  # noqa: E731
    wait_for(line, lambda: any(line in last for last in lasts()))


@pytest.mark.parametrize('of_slurm', [False, True])
def test_a_job_that_is_asked_to_stop_is_requeued_only_where_it_is_one_of_slurm(
    of_slurm, tmp_path, commands_of_slurm
):
    with _started(tmp_path / 'run', None if of_slurm else os.getpid()) as job:
        _wait_for_line(tmp_path / 'run', 'began')
        job.terminate()
        assert job.wait() == (-signal.SIGKILL if of_slurm else 75)
    assert (tmp_path / 'requeued').exists() == of_slurm
    _wait_for_line(tmp_path / 'run', 'stopped and saved')


@pytest.mark.parametrize('job_dies', [False, True])
def test_a_run_saves_when_the_sweep_or_its_job_has_died(job_dies, tmp_path):
    starter = subprocess.Popen(['sleep', '100'])
    with _started(tmp_path / 'run', starter.pid) as job:
        _wait_for_line(tmp_path / 'run', 'began')
        if job_dies:
            job.kill()
        else:
            job.send_signal(signal.SIGHUP)
            starter.kill()
            starter.wait()
        _wait_for_line(tmp_path / 'run', 'stopped and saved')
    starter.kill()
    starter.wait()


def test_a_job_stops_as_well_while_it_waits_for_another_run(tmp_path):
    workdir = tmp_path / 'run'
    workdir.mkdir()
    starter = subprocess.Popen(['sleep', '100'])
    with (workdir / '.lock').open('w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with _started(workdir, starter.pid) as job:
            starter.kill()
            starter.wait()
            assert job.wait(timeout=40) == 75  # It would wait for a minute.
    assert not (workdir / LOG_FILE).exists()


class Script:
    """Runs that end as a list says: (run, its last line, whether Ctrl-C comes before it)."""

    def __init__(self, ends):
        self.ends, self.cancels = list(ends), 0

    def start(self, runs):
        pass

    def ended(self):
        run, line, interrupted = self.ends[0]
        if interrupted and not self.cancels:
            os.kill(os.getpid(), signal.SIGINT)
            return []
        if interrupted and self.cancels < 2:  # It has not heard the first.
            return []
        del self.ends[0]
        run.workdir.mkdir(parents=True)
        (run.workdir / LOG_FILE).write_text(f'{line}\n')
        return [run]

    def cancel(self):
        self.cancels += 1

    @property
    def running_count(self):
        return len(self.ends)

    def said(self, run):
        return ''


def test_failures_before_and_during_a_stop_are_reported_and_jobs_are_asked_again(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(executors, 'ASK_AGAIN_SECONDS', 0.3)
    runs = expand.expand(Sweep(**SMALL), tmp_path)[:4]
    ends = [
        (runs[0], 'error: too hot', False),
        (runs[1], 'SIGTERM: stopped and saved at step 3 of 9; continue', True),
        (runs[2], 'error: the disk is full', True),
        (runs[3], '$ python -m flaxcls train', True),
    ]
    executor, failed = Script(ends), {}
    with pytest.raises(Stopped, match='SIGINT'):
        run_lib.run_unfinished(runs, executor, failed)
    assert failed == {runs[0]: 'too hot', runs[2]: 'the disk is full'}
    assert executor.cancels >= 2
    out = capsys.readouterr().out
    assert out.count('stopping 3 runs') == 1


def _write_sweep(folder, source):
    """Returns the words of a command for a sweep of that data."""
    file = folder / 'of_data.py'
    file.write_text(
        'from flaxcls.sweeping import Sweep, values\n'
        'def get_sweep():\n'
        f'    common = {{"data.source": {source!r}, "model.stage_sizes": (1,)}}\n'
        '    axes = {"epochs": values("num_epochs", [3, 4])}\n'
        '    return Sweep("experiments/digits_resnet20.py", axes, common)\n'
    )
    return [f'--sweep={file}', f'--workdir={folder / "runs"}']


def _interrupted(*_, **__):
    raise KeyboardInterrupt


def test_a_second_ctrl_c_is_reported_as_it_is(tmp_path, monkeypatch):
    words = _write_sweep(tmp_path, 'digits')
    monkeypatch.setattr(page, 'write_all', _interrupted)
    with pytest.raises(Stopped, match='with --report writes them'):
        sweep.main([*words, '--report'])
    monkeypatch.setattr(run_lib, 'run_unfinished', _interrupted)
    with pytest.raises(Stopped, match='no longer waits'):
        sweep.main(words)


def test_a_report_needs_no_data(tmp_path, capsys):
    words = _write_sweep(tmp_path, f'folder:{tmp_path / "gone"}')
    with pytest.raises(UserError, match='gone'):
        sweep.main([*words, '--dry_run'])
    sweep.main([*words, '--report'])
    assert 'costs are left out' in capsys.readouterr().out
    assert (tmp_path / 'runs/summary.md').exists()


@pytest.fixture
def queue(tmp_path, commands_of_slurm):
    """Slurm that takes jobs as number 7, 8 ..., and has those of a file in its queue."""
    listed = tmp_path / 'queue'
    listed.write_text('')
    _write_command(commands_of_slurm, 'srun', '')
    _write_command(commands_of_slurm, 'squeue', f'echo x >> {tmp_path}/asked; cat {listed}')
    _set_max_array_size(commands_of_slurm, 300)
    count = f'6 + $(grep -c ^srun {tmp_path}/submitted)'
    text = f'cat "$1" >> {tmp_path}/submitted; echo "Submitted batch job $(({count}))"'
    _write_command(commands_of_slurm, 'sbatch', text)
    return listed


def _set_max_array_size(folder, size):
    _write_command(folder, 'scontrol', f'echo "MaxArraySize            = {size}"')


def _start_slurm(root, runs, jobs=None):
    executor = slurm.Slurm(root, 'experiments/digits_resnet20.py', jobs, {}, ask_seconds=0.0)
    executor.start(runs)
    return executor


def test_what_is_in_the_queue_is_not_submitted_again_and_is_remembered(tmp_path, queue):
    runs = expand.expand(Sweep(**SMALL), tmp_path)
    stored = tmp_path / 'slurm_jobs.json'
    names = [str(run.workdir.relative_to(tmp_path)) for run in runs]
    stored.write_text(json.dumps({names[0]: '5_0', names[1]: '5_1', names[2]: '5_2'}))
    queue.write_text('5_0\n5_1\n')
    _start_slurm(tmp_path, runs[1:4])  # The first is of a sweep with other seeds.
    assert json.loads(stored.read_text()) == {
        names[0]: '5_0', names[1]: '5_1', names[2]: '7_0', names[3]: '7_1',
    }  # fmt: skip
    assert '--array=0-1%2' in (tmp_path / 'submitted').read_text()


def test_nothing_is_submitted_while_the_queue_is_unknown(tmp_path, queue):
    runs = expand.expand(Sweep(**SMALL), tmp_path)
    squeue = tmp_path / 'bin/squeue'
    hiccups = f'test $(wc -l < {tmp_path}/asked) -gt 2 || exit 1'
    squeue.write_text(squeue.read_text().replace('; cat', f'; {hiccups}; cat'))
    _start_slurm(tmp_path, runs)
    assert (tmp_path / 'submitted').read_text().count('--array') == 1
    _write_command(tmp_path / 'bin', 'squeue', 'exit 1')
    with pytest.raises(UserError, match='not responded'):
        _start_slurm(tmp_path, runs)
    assert (tmp_path / 'submitted').read_text().count('--array') == 1


def _submitted(root):
    """Returns the arrays that sbatch was given, and what each waits for."""
    text = (root / 'submitted').read_text()
    waits = [re.search(r'--dependency=(\S+)', part) for part in text.split('#!/bin/bash')[1:]]
    return re.findall(r'--array=(\S+)', text), [wait and wait[1] for wait in waits]


def test_an_array_takes_all_runs_at_a_time_unless_limited(tmp_path, queue):
    runs = expand.expand(Sweep(**SMALL), tmp_path)
    _start_slurm(tmp_path, runs)
    _start_slurm(tmp_path, runs, jobs=8)
    assert _submitted(tmp_path) == (['0-11%12', '0-11%8'], [None, None])


@pytest.mark.parametrize('limit', [None, 1, 2, 3, 5, 7, 12, 13])
def test_parts_have_every_run_once_in_order_and_none_is_larger_than_an_array(limit):
    for count in range(1, 14):
        parts = slurm.split(range(count), limit)
        assert [run for part in parts for run in part] == list(range(count))
        assert all(1 <= len(part) <= (limit or count) for part in parts)
        assert len(parts) == (-(-count // limit) if limit else 1)


@pytest.mark.parametrize(
    ('size', 'jobs', 'arrays', 'waits'),
    [
        (5, None, ['0-4%5', '0-4%5', '0-1%2'], [None, None, None]),
        (5, 2, ['0-4%2', '0-4%2', '0-1%2'], [None, 'afterany:7', 'afterany:8']),
        (5, 7, ['0-4%5', '0-4%5', '0-1%2'], [None, 'afterany:7', 'afterany:8']),
        (3, 7, ['0-2%3'] * 4, [None, None, 'afterany:7', 'afterany:8']),
        (11, 4, ['0-10%4'], [None, 'afterany:7']),  # The last run needs no array.
        (0, 11, [], [None] * 11 + ['afterany:7']),  # There are no arrays on this cluster.
    ],
)
def test_more_runs_than_an_array_may_have_are_several_arrays_that_keep_the_limit(
    size, jobs, arrays, waits, tmp_path, queue
):
    _set_max_array_size(tmp_path / 'bin', size)
    runs = expand.expand(Sweep(**SMALL), tmp_path)
    executor = _start_slurm(tmp_path, runs, jobs)
    assert _submitted(tmp_path) == (arrays, waits)
    stored = json.loads((tmp_path / 'slurm_jobs.json').read_text())
    assert list(stored) == [str(run.workdir.relative_to(tmp_path)) for run in runs]
    assert len(set(stored.values())) == executor.running_count == 12

    _write_command(tmp_path / 'bin', 'scancel', f'echo "$@" > {tmp_path}/cancelled')
    executor.cancel()
    assert (tmp_path / 'cancelled').read_text().split() == list(stored.values())
    queue.write_text('\n'.join(list(stored.values())[3:]))
    assert executor.ended() == runs[:3]
    _start_slurm(tmp_path, runs[3:], jobs)  # The same command finds all arrays again.
    assert len(_submitted(tmp_path)[1]) == len(waits)


def test_arrays_before_one_that_is_refused_stay_and_are_remembered(tmp_path, queue):
    _set_max_array_size(tmp_path / 'bin', 5)
    sbatch = tmp_path / 'bin/sbatch'
    refuse = f'test -e {tmp_path}/submitted && echo "error: QOSMaxSubmitJob" >&2 && exit 1'
    sbatch.write_text(sbatch.read_text().replace('cat "$1"', f'{refuse}\ncat "$1"'))
    runs = expand.expand(Sweep(**SMALL), tmp_path)
    with pytest.raises(
        UserError, match=r'refuses 5 jobs \(.*QOSMaxSubmitJob.*\); 5 are in the queue'
    ):
        _start_slurm(tmp_path, runs)
    stored = json.loads((tmp_path / 'slurm_jobs.json').read_text())
    assert list(stored.values()) == [f'7_{index}' for index in range(5)]


def test_commands_of_slurm_do_not_hear_ctrl_c(tmp_path, queue):
    """They have groups of their own, or the signal is blocked."""
    (tmp_path / 'bin/sbatch').write_text(
        f'#!{sys.executable}\n'  # A shell would clear the mask.
        'import signal\n'
        f'file = open("{tmp_path}/mask", "w")\n'
        'print([int(number) for number in signal.pthread_sigmask(0, [])], file=file)\n'
        'print("Submitted batch job 7")\n'
    )
    group = f'ps -o pgid= -p $$ >> {tmp_path}/groups'
    _write_command(tmp_path / 'bin', 'squeue', group)
    _write_command(tmp_path / 'bin', 'scancel', group)
    executor = _start_slurm(tmp_path, expand.expand(Sweep(**SMALL), tmp_path)[:2])
    executor.cancel()
    assert signal.SIGINT in json.loads((tmp_path / 'mask').read_text())
    groups = (tmp_path / 'groups').read_text().split()
    assert len(groups) == 2 and str(os.getpgrp()) not in groups
