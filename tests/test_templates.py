"""The templates of experiments/ for containers and clouds, which no test can run.

What they have of flaxcls is tried: their commands, exit codes, files, and how processes meet.
"""

import configparser
import os
import pathlib
import re
import subprocess

import pytest
import yaml

from flaxcls.commands.train import make_parser
from flaxcls.config.files import load_config
from flaxcls.errors import Stopped, UserError
from flaxcls.system import distributed

DOCKERFILE = pathlib.Path('experiments/docker/Dockerfile')
JOBSETS = sorted(pathlib.Path('experiments/kubernetes').glob('*.yaml'))
SKYPILOT = pathlib.Path('experiments/skypilot/train.yaml')
TEMPLATES = [DOCKERFILE, *JOBSETS, SKYPILOT]
ELSEWHERE = {'experiments/slurm/train.sh'}  # training/test_slurm.py runs it.
SETUP = configparser.ConfigParser()
SETUP.read('setup.cfg', encoding='utf-8')
EXTRAS = SETUP['options.extras_require']
PROGRAMS = re.findall(r'^(\w+) =', SETUP['options.entry_points']['console_scripts'], re.M)


def _accepted(command):
    """Returns the flags of a command for training, which has to be one that flaxcls accepts."""
    program, name, *arguments = command
    assert program in PROGRAMS and name == 'train'
    flags, overrides = make_parser('flaxcls train', '').parse_with_overrides(arguments)
    load_config(flags.config, overrides)
    return flags


def _write_program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\n{text}\n')
    path.chmod(0o755)


def test_every_template_is_looked_at():
    files = [path for path in pathlib.Path('experiments').rglob('*') if path.is_file()]
    others = {str(path) for path in files if path.suffix not in ('.py', '.pyc')}
    assert others == ELSEWHERE | set(map(str, TEMPLATES))


@pytest.mark.parametrize('path', TEMPLATES, ids=str)
def test_header_says_how_it_is_used_and_that_it_was_not_run(path):
    header = re.match(r'(#.*\n)+', path.read_text())[0]
    assert re.search(r'^# Not run: ', header, re.M)
    (command,) = re.findall(rf'^#   (.+ {path}\b.*)$', header, re.M)
    assert command.split()[0] in ('docker', 'kubectl', 'sky')
    for name in re.findall(r'experiments/[\w/.]*\w', path.read_text()):
        assert pathlib.Path(name).exists(), name
    for extra in re.findall(r'EXTRA=(\w+)', header):
        assert extra in EXTRAS


def test_dockerfile_installs_the_project_with_each_extra(tmp_path):
    text = re.sub(r'^#.*\n', '', DOCKERFILE.read_text(), flags=re.M)
    steps = [line.split(maxsplit=1) for line in text.splitlines()]
    words = [word for word, _ in steps]
    assert words[:2] == ['FROM', 'ARG'] and words[-1] == 'ENTRYPOINT'
    assert set(words) <= {'FROM', 'ARG', 'WORKDIR', 'COPY', 'RUN', 'ENTRYPOINT'}
    for source in (name for word, rest in steps if word == 'COPY' for name in rest.split()[:-1]):
        assert pathlib.Path(source).exists(), source
    assert yaml.safe_load(steps[-1][1]) == PROGRAMS

    _write_program(tmp_path / 'python', 'echo "$@"')
    (install,) = (rest for word, rest in steps if word == 'RUN')
    for extra, what in (('', '.'), ('cuda', '.[cuda]'), ('tpu', '.[tpu]')):
        said = subprocess.run(
            ['sh', '-c', install],
            env={'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'EXTRA': extra},
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        assert said.split() == f'-m pip install --no-cache-dir -c constraints.txt {what}'.split()


def _only(items):
    (item,) = items
    return item


@pytest.mark.parametrize('path', JOBSETS, ids=str)
def test_jobset_restarts_what_can_go_on_and_its_processes_meet(path):
    jobset = yaml.safe_load(path.read_text())
    assert (jobset['apiVersion'], jobset['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
    policy = jobset['spec']['failurePolicy']
    assert policy['maxRestarts'] > 0
    rule = _only(policy['rules'])
    assert (rule['action'], rule['onJobFailureReasons']) == ('FailJobSet', ['PodFailurePolicy'])
    replicated = _only(jobset['spec']['replicatedJobs'])
    job = replicated['template']['spec']
    rule = _only(job['podFailurePolicy']['rules'])
    assert rule['action'] == 'FailJob'
    assert rule['onExitCodes'] == {'operator': 'In', 'values': [UserError.exit_code]}
    assert (job['completionMode'], job['backoffLimit']) == ('Indexed', 0)
    assert job['completions'] == job['parallelism'] == 2
    pod = job['template']['spec']
    assert pod['restartPolicy'] == 'Never'  # With another, there is no podFailurePolicy.
    container = _only(pod['containers'])
    _require_shared(container, pod)

    index = '$(JOB_COMPLETION_INDEX)'  # Kubernetes puts the number of the pod in its place.
    for pod_index in range(job['completions']):
        flags = _accepted([word.replace(index, str(pod_index)) for word in container['command']])
        if 'google.com/tpu' in container['resources']['limits']:
            assert flags.coordinator is flags.num_processes is flags.process_id is None
            assert distributed.has_peers({'TPU_WORKER_HOSTNAMES': 'one,other'})
        else:
            host = f'{jobset["metadata"]["name"]}-{replicated["name"]}-0-0'
            where = f'{host}.{jobset["metadata"]["name"]}:'
            assert flags.coordinator.startswith(where)
            assert (flags.num_processes, flags.process_id) == (job['completions'], pod_index)


def _require_shared(container, pod):
    """Asserts that all that the command names lies in a volume that all pods see."""
    mount, volume = _only(container['volumeMounts']), _only(pod['volumes'])
    assert mount['name'] == volume['name'] and 'persistentVolumeClaim' in volume
    paths = [word.partition('=')[2] for word in container['command'] if '=/' in word]
    assert len(paths) == 2 and all(path.startswith(f'{mount["mountPath"]}/') for path in paths)


@pytest.mark.parametrize('rank', [0, 1])
def test_skypilot_recovers_a_stopped_run_and_gives_each_node_its_rank(rank, tmp_path):
    task = yaml.safe_load(SKYPILOT.read_text())
    assert Stopped('', 15).exit_code in task['resources']['job_recovery']['recover_on_exit_codes']
    home = tmp_path / 'home'
    _write_program(home / 'flaxcls/bin/python', 'echo "$@"')
    _write_program(home / 'flaxcls/bin/flaxcls', 'printf "%s\\n" flaxcls "$@"')
    _write_program(tmp_path / 'bin/uv', 'test "$1" = venv')
    environment = {
        'HOME': str(home),
        'PATH': f'{tmp_path}/bin:{os.environ["PATH"]}',
        'SKYPILOT_NODE_IPS': '10.0.0.7\n10.0.0.8',
        'SKYPILOT_NUM_NODES': str(task['num_nodes']),
        'SKYPILOT_NODE_RANK': str(rank),
    }

    def say(script):
        command = ['bash', '-e', '-c', script]
        return subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True
        ).stdout

    extra = re.fullmatch(r'-m pip install -c constraints.txt \.\[(\w+)\]\n', say(task['setup']))[1]
    assert extra in EXTRAS
    command = say(task['run']).splitlines()
    flags = _accepted(command)
    assert flags.coordinator == '10.0.0.7:1234'
    assert (flags.num_processes, flags.process_id) == (task['num_nodes'], rank)
    shared = _only(task['volumes'])
    paths = [word.partition('=')[2] for word in command if '=/' in word]
    assert len(paths) == 2 and all(path.startswith(f'{shared}/') for path in paths)
