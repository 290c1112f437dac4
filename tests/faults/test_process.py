"""A process in a poor place: without streams, home, memory, a reader; signalled twice."""

import errno
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from flaxcls.sweeping.slurm import slurm_parameters
from flaxcls.system import cli, compilation_cache, files


@pytest.mark.parametrize('closed', ['<&-', '>&-', '2>&-', '>&- 2>&- <&-'])
@pytest.mark.parametrize('arguments', ['--version', 'configs', 'predict --help'])
def test_closed_streams_are_no_fault(arguments, closed):
    command = f'{sys.executable} -m flaxcls {arguments} {closed}'
    process = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert process.returncode == 0
    assert not process.stderr


def test_without_a_home_nothing_is_kept_and_that_is_said_once(monkeypatch, capsys):
    def raise_as_pathlib_does(*_):
        raise RuntimeError('Could not determine home directory.')

    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
    for module in (files, compilation_cache):
        monkeypatch.setattr(module.platformdirs, 'user_cache_path', raise_as_pathlib_does)
    compilation_cache.keep_compiled_programs()
    assert files.user_cache_path('kind', 'key') == files.user_cache_path('kind', 'key')
    assert capsys.readouterr().out.count('there is no home folder') == 1
    assert 'JAX_COMPILATION_CACHE_DIR' not in os.environ


# Stands for the loop: it is asked to stop, saves for a second, and ends with its own code.
LOOP = """
import sys, time
from flaxcls.system.signals import SignalFlag
with SignalFlag() as stop:
    print('ready', flush=True)
    for _ in range(1000):
        time.sleep(0.01)
        if len(sys.argv) > 1:
            print('a line', flush=True)
        if stop.signal:
            break
time.sleep(float(sys.argv[1]) if len(sys.argv) > 1 else 1)
open(sys.argv[-1], 'w').write(str(stop.signal)) if len(sys.argv) > 2 else None
sys.exit(75 if stop.signal else 3)
"""


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_two_signals_in_a_row_are_one(number):
    process = subprocess.Popen([sys.executable, '-c', LOOP], stdout=subprocess.PIPE)
    process.stdout.readline()
    for _ in range(2):
        process.send_signal(number)
        time.sleep(0.2)
    assert process.wait(timeout=20) == 75


def test_nohup_keeps_its_promise():
    ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
    process = subprocess.Popen(
        [sys.executable, '-c', LOOP], stdout=subprocess.PIPE, preexec_fn=ignore
    )
    process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.terminate()
    assert process.wait(timeout=20) == 75


def test_a_reader_that_goes_is_a_signal(tmp_path):
    command = [sys.executable, '-c', LOOP, '0', str(tmp_path / 'signal')]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=20) == 75
    assert (tmp_path / 'signal').read_text() == str(int(signal.SIGPIPE))
    assert not process.stderr.read()


FAULTS = {
    'name too long': OSError(errno.ENAMETOOLONG, 'File name too long', 'a' * 300),
    'full': OSError(errno.ENOSPC, 'No space left on device', '/a/metrics.jsonl'),
    'disk': OSError(errno.EIO, 'Input/output error', '/a'),
    'files': OSError(errno.EMFILE, 'Too many open files', '/a'),
    'memory': MemoryError(),
    'threads': RuntimeError("can't start new thread"),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_what_the_system_refuses_is_a_sentence_and_exit_1(fault, capsys, monkeypatch):
    def main(argv):
        raise FAULTS[fault]

    monkeypatch.setattr(cli, 'keep_compiled_programs', lambda: None)
    monkeypatch.setattr(sys, 'stdout', open(os.devnull, 'w'))  # noqa: SIM115 - as a process has
    monkeypatch.setattr(sys, 'unraisablehook', sys.unraisablehook)
    with pytest.raises(SystemExit) as caught:
        cli.run_command(main)
    assert caught.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith('error: ')
    assert said.count('\n') == 1
    path = getattr(FAULTS[fault], 'filename', None)
    assert path is None or path in said


def test_a_workdir_of_300_characters_is_a_sentence(tmp_path):
    command = [sys.executable, '-m', 'flaxcls', 'train', '--config=digits_resnet20']
    command.append(f'--workdir={tmp_path}/{"a" * 300}')
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 1
    assert 'File name too long' in process.stderr
    assert 'Traceback' not in process.stderr
    assert not list(pathlib.Path(tmp_path).iterdir())


@pytest.mark.parametrize('value', ['True', 'true', ''])
def test_a_flag_of_slurm_has_no_value(value):
    parameters = slurm_parameters({'exclusive': value, 'partition': 'main'})
    assert parameters['additional_parameters'] == {
        'requeue': True,
        'exclusive': True,
        'partition': 'main',
    }
