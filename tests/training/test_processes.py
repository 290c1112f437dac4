"""Runs of two processes, through the command line: as one, stopped, and with one of them dead."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import flaxcls
from flaxcls import errors
from flaxcls.errors import Stopped
from flaxcls.system import distributed
from flaxcls.system.signals import SignalFlag
from flaxcls.training import loop
from flaxcls.training.checkpoints import fingerprint
from flaxcls.training.logging import read_metrics
from flaxcls.training.run_record import read_record
from tests.helpers.configs import TINY
from tests.helpers.environment import with_devices
from tests.helpers.unpack import load_state

EXPERIMENT = 'experiments/digits_resnet20.py'
FLAGS = [f'--config.{key}={value}' for key, value in TINY.items()]
FLAGS += ['--config.batch_norm.group_size=16', '--config.augment.mixup=0.2']
ENDS_WITHIN = 90  # Seconds; a process that hangs is a fault.


def _start(workdir, *flags, devices, door=('-m', 'flaxcls', 'train')):
    flags = [f'--config={EXPERIMENT}', *FLAGS, f'--workdir={workdir}', *flags]
    command = [sys.executable, *door, *flags]
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    return subprocess.Popen(command, env=with_devices(devices), **pipes)


def _start_two(workdir, *flags, **door):
    with socket.socket() as free:
        free.bind(('localhost', 0))
        address = f'localhost:{free.getsockname()[1]}'
    return [
        _start(
            workdir, f'--coordinator={address}', '--num_processes=2', f'--process_id={index}',
            *flags, devices=2, **door,
        )
        for index in (0, 1)
    ]  # fmt: skip


def _finish(running):
    """Returns (exit code, stdout, stderr) of each."""
    try:
        ends = [process.communicate(timeout=ENDS_WITHIN) for process in running]
    finally:
        for process in running:
            process.kill()
    return [(p.returncode, *end) for p, end in zip(running, ends, strict=True)]


# In a longer run, or from another seed, some unit comes so close to zero that one rounding turns
# it on: a change of the weights by 6e-8 then moves them by 1e-3 in the end, on one device as well.
FEW_ROUNDINGS = ['--config.num_epochs=1', '--config.seed=1']


def _assert_same_run(workdir, other):
    for record, expected in zip(*map(read_metrics, (workdir, other)), strict=True):
        assert record.keys() == expected.keys()
        for name in expected.keys() & {'train/loss', 'val/loss', 'train/learning_rate'}:
            assert record[name] == pytest.approx(expected[name], rel=2e-6)
        for name in expected.keys() & {'step', 'val/count', 'val/accuracy', 'train/count'}:
            assert record[name] == expected[name]


def test_two_processes_of_two_devices_are_one_of_four_and_one_device(tmp_path):
    workdir = tmp_path / 'two'
    (code, out, err), (other_code, other_out, other_err) = _finish(
        _start_two(workdir, *FEW_ROUNDINGS)
    )
    assert (code, err, other_code, other_err) == (0, '', 0, '')
    assert '4 cpu device(s) of 2 processes' in out
    assert 'final: ' not in other_out  # The first one speaks for all.
    assert 'final: ' in out
    (part,) = read_record(workdir)['parts']
    assert part['device'].startswith('2 processes, each on ')
    state = load_state(workdir)
    for devices in (4, 1):
        code, _, err = _finish([_start(tmp_path / str(devices), *FEW_ROUNDINGS, devices=devices)])[
            0
        ]
        assert code == 0, err
        _assert_same_run(tmp_path / str(devices), workdir)
        other = load_state(tmp_path / str(devices))
        for got, expected in zip(*map(jax.tree.leaves, (other, state)), strict=True):
            assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max() + 1e-7


def test_a_signal_to_one_stops_all_at_one_step(tmp_path):
    workdir = tmp_path / 'run'
    running = _start_two(workdir, '--config.num_epochs=60')
    for line in running[0].stdout:
        if line.startswith('step '):
            break
    running[1].send_signal(signal.SIGUSR1)
    ends = _finish(running)
    assert [end[0] for end in ends] == [75, 75], ends
    stops = [err.split('stopped and saved at ')[1] for _, _, err in ends]
    assert stops[0] == stops[1]
    assert 'a signal to another process' in ends[0][2]
    assert ends[1][2].startswith('SIGUSR1: ')
    step = int(stops[0].split()[1])
    assert int(load_state(workdir).step) == step


@pytest.mark.parametrize('dead', [pytest.param(0, marks=pytest.mark.weekly), 1])
def test_the_death_of_one_ends_the_other_with_a_sentence(tmp_path, dead):
    running = _start_two(tmp_path / 'run', '--config.num_epochs=2000')
    for line in running[0].stdout:
        if line.startswith('step '):
            break
    running[dead].kill()
    began = time.monotonic()
    code, _, err = _finish(running)[1 - dead]
    assert code == 1, err
    assert err.startswith('error: another process of this run has died; start all of them again')
    assert err.count('\n') == 1
    assert time.monotonic() - began < 2 * distributed.HEARTBEAT_TIMEOUT


TROUBLE = [
    'E1126 18:40:01.1 99 coordination_service_agent.cc:3] Polled an error, tasks:\n',
    '/job:jax_worker/replica:0/task:1\n',
    'The tasks have crashed. Check the task logs for an earlier error.\n',
]
LOST = f'error: {errors.PEER_LOST}\n'


@pytest.mark.parametrize(
    ('lines', 'ended', 'says', 'code'),
    [
        (['[Gloo] Rank 0 is connected.\n', 'a warning\n'], 0, 'a warning\n', 0),
        ([*TROUBLE, LOST, 'more trace\n'], 1, LOST, 1),
        (TROUBLE, -signal.SIGABRT, LOST, 1),
        (['F1126 18:40:01.1 99 client.h:80] Ending.\n', 'trace\n'], -signal.SIGABRT, LOST, 1),
        # What is not known to be trace is printed, if late.
        ([TROUBLE[0], 'a warning\n'], 0, 'a warning\n', 0),
        ([TROUBLE[0], 'a warning\n', 'error: no.\n'], 2, 'error: no.\na warning\n', 2),
        (['a warning\n'], -signal.SIGTERM, 'a warning\n', 128 + signal.SIGTERM),
    ],
)
def test_trace_of_connections_is_left_out_and_nothing_else(lines, ended, says, code, capsys):
    assert distributed.retell(lines, lambda: ended) == code
    assert capsys.readouterr().err == says


@pytest.mark.parametrize('door', ['-m flaxcls train', '-m flaxcls.main', 'script train'])
def test_a_mistake_is_reported_by_both_and_ends_both(tmp_path, door):
    script = tmp_path / 'flaxcls'  # As pip writes it.
    script.write_text('from flaxcls.__main__ import run\nrun()\n')
    door = door.replace('script', str(script)).split()
    ends = _finish(_start_two(tmp_path / 'run', '--config.model.growth_rate=7', door=door))
    for code, _, err in ends:
        assert code == 2
        assert 'no meaning for resnet20' in err
        assert err.count('\n') == 1


@pytest.mark.parametrize(
    ('flags', 'says'),
    [
        (['--num_processes=2'], 'several processes need --coordinator=HOST:PORT'),
        (['--coordinator=here', '--num_processes=2', '--process_id=0'], '=HOST:PORT'),
        (['--coordinator=a:1', '--num_processes=2', '--process_id=2'], '--process_id=2 must be'),
    ],
    ids=str,
)
def test_flags_that_do_not_fit_are_one_sentence(tmp_path, flags, says):
    code, _, err = _finish([_start(tmp_path, *flags, devices=1)])[0]
    assert code == 2
    assert says in err
    assert err.count('\n') == 1


def test_a_second_run_in_the_same_workdir_is_refused(tmp_path):
    first = _start(tmp_path / 'run', '--config.num_epochs=2000', devices=1)
    for line in first.stdout:
        if line.startswith('step '):
            break
    code, _, err = _finish([_start(tmp_path / 'run', devices=1)])[0]
    assert code == 2
    assert 'another run is training in' in err
    assert err.count('\n') == 1
    assert first.poll() is None
    first.kill()
    first.communicate()


class _StopAfterTen(SignalFlag):
    """Behaves as if SIGTERM came in the tenth step."""

    looked = 0

    @property
    def signal(self):
        self.looked += 1
        return signal.SIGTERM if self.looked == 10 else None

    @signal.setter
    def signal(self, value):
        pass


def test_saved_on_eight_devices_and_continued_on_fewer(all_devices, tmp_path, monkeypatch):
    config = flaxcls.load_config(None, TINY | {'batch_size': 48, 'num_epochs': 1})
    monkeypatch.setattr(jax, 'devices', lambda: all_devices)
    flaxcls.train_and_evaluate(config, tmp_path / 'straight')
    with monkeypatch.context() as patch:
        patch.setattr(loop, 'SignalFlag', _StopAfterTen)
        with pytest.raises(Stopped, match='at step 10'):
            flaxcls.train_and_evaluate(config, tmp_path / 'stopped')
    for devices in (1, 2, 3):
        workdir = tmp_path / str(devices)
        shutil.copytree(tmp_path / 'stopped', workdir)
        monkeypatch.setattr(jax, 'devices', lambda count=devices: all_devices[:count])
        state, _ = flaxcls.train_and_evaluate(config, workdir)
        assert len(state.step.devices()) == devices
        _assert_same_run(workdir, tmp_path / 'straight')


def test_damaged_newest_checkpoint_is_passed_over_for_the_one_before(tiny_config, tmp_path, capsys):
    config = tiny_config(batch_size=48, num_epochs=1, checkpoint_every_steps=7)
    state, _ = flaxcls.train_and_evaluate(config, tmp_path / 'run')
    checkpoints = tmp_path / 'run/checkpoints'
    newest = str(int(state.step))
    assert newest in os.listdir(checkpoints)
    for path in (checkpoints / newest).glob('default/**/d/*'):
        path.write_bytes(path.read_bytes()[:40])
    capsys.readouterr()
    again, _ = flaxcls.train_and_evaluate(config, tmp_path / 'run')
    said = capsys.readouterr()
    assert 'Warning: ' in said.err
    assert 'This checkpoint is passed over' in said.err
    assert 'Resuming at step 28.' in said.out
    assert fingerprint(again) == fingerprint(state)
    assert fingerprint(load_state(tmp_path / 'run')) == fingerprint(state)
    assert os.listdir(tmp_path / 'run/damaged_checkpoints') == [newest]


@pytest.mark.parametrize(
    ('environment', 'neighbours'),
    [
        ({}, False),
        ({'SLURM_NTASKS': '2', 'SLURM_JOB_ID': '1'}, False),  # A batch script's own process.
        ({'SLURM_STEP_NUM_TASKS': '1'}, False),
        ({'SLURM_STEP_NUM_TASKS': '2'}, True),
        ({'OMPI_COMM_WORLD_SIZE': '2'}, True),
        ({'TPU_WORKER_HOSTNAMES': 'localhost'}, False),
        ({'TPU_WORKER_HOSTNAMES': '10.0.0.1,10.0.0.2'}, True),
    ],
    ids=json.dumps,
)
def test_launchers_are_known_by_their_environment(environment, neighbours):
    assert distributed.has_peers(environment) == neighbours
