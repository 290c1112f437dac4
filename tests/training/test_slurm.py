"""experiments/slurm/train.sh on a Slurm cluster of two nodes that lives as long as the test."""

import pathlib
import subprocess
import sys

import pytest

from tests.helpers.configs import TINY
from tests.helpers.environment import with_devices
from tests.helpers.slurm_cluster import needs_slurm, preempt, wait_for
from tests.helpers.unpack import load_state

SCRIPT = 'experiments/slurm/train.sh'
pytestmark = needs_slurm


@pytest.mark.usefixtures('cluster')
def test_preempted_job_is_requeued_and_ends_as_the_uninterrupted_run(tmp_path):
    experiment = ['--config=experiments/digits_resnet20.py']
    options = TINY | {'num_epochs': 6, 'eval_every_epochs': 6}
    experiment += [f'--config.{key}={value}' for key, value in options.items()]
    run, log = tmp_path / 'run', tmp_path / 'job.log'
    environment = with_devices(1) | {'PYTHON': sys.executable}
    submit = ['sbatch', '--parsable', '--nodes=2', f'--output={log}', '--exclusive', SCRIPT]
    job = subprocess.run(
        [*submit, *experiment, f'--workdir={run}'],
        env=environment, check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    said = lambda text: log.exists() and text in log.read_text()  # noqa: E731
    wait_for('the first steps', lambda: said('step 5/'))
    preempt(job, lambda: said('stopped and saved at step'))
    wait_for('the end', lambda: said('state sha256'))

    text = log.read_text()
    stopped = int(text.split('stopped and saved at step ')[1].split()[0])
    assert f'Resuming at step {stopped}.' in text
    assert 'of 2 processes' in text
    command = [sys.executable, '-m', 'flaxcls', 'train', *experiment]
    straight = subprocess.run(
        [*command, f'--workdir={tmp_path / "straight"}'],
        env=with_devices(2),
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    digest = straight.split('state sha256 ')[1].split()[0]
    assert f'state sha256 {digest}' in text
    assert int(load_state(run).step) == 6 * 22


def test_script_is_valid_and_says_what_it_runs():
    subprocess.run(['bash', '-n', SCRIPT], check=True)
    assert '"$@"' in pathlib.Path(SCRIPT).read_text()
