"""A Slurm cluster of two nodes that lives as long as a test; for tests to import.

Needs slurmctld, slurmd, the client commands and munge, which .ci/run installs, and to be root.
"""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time

import pytest

PROGRAMS = ('slurmctld', 'slurmd', 'sbatch', 'scontrol', 'munged')
IS_THERE = all(map(shutil.which, PROGRAMS)) and os.geteuid() == 0
# The last in the order of names: the first is where processes meet, and has to resolve.
OTHER = 'zz-other'
MAX_ARRAY_SIZE = 2  # So that a small sweep has to become several arrays.
WAIT = 120  # Seconds, for anything; what takes longer is a fault.

# Two partitions over the same nodes: a job in `high` takes them from one in `main`, which is
# signalled, ends, and goes back into the queue.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
MaxArraySize={max_array_size}
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
ReturnToService=2
NodeName={host} NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 State=UNKNOWN
NodeName={other} NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime=20 PreemptMode=REQUEUE
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""

needs_slurm = pytest.mark.skipif(not IS_THERE, reason='needs Slurm, munge and root; see .ci/run')


def wait_for(what, look):
    """Returns what `look()` finds, once it finds something."""
    deadline = time.monotonic() + WAIT
    while not (found := look()):
        assert time.monotonic() < deadline, f'{what} took longer than {WAIT} s'
        time.sleep(0.2)
    return found


def _free_ports(count):
    sockets = [socket.create_server(('127.0.0.1', 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def ask(*command):
    """Returns what a command prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def preempt(job, saved):
    """Takes both nodes from jobs, and lets them continue once they are back in the queue.

    Args:
      job: of a whole array, or of a single job.
      saved: returns whether they have saved.
    """
    ask('sbatch', '--parsable', '-p', 'high', '--nodes=2', '--exclusive', '--output=/dev/null',
        '--wrap=true')  # fmt: skip
    wait_for('the preemption', saved)
    states = lambda: set(ask('squeue', '-h', '-j', job, '-o', '%T').split())  # noqa: E731
    wait_for('the requeue', lambda: states() == {'PENDING'})
    # A requeued job waits for two minutes, unless somebody is in a hurry; within the same second,
    # though, its credential would be taken for the old one.
    time.sleep(2)
    for requeued in ask('squeue', '-h', '--array', '-j', job, '-o', '%i').split():
        ask('scontrol', 'update', f'JobId={requeued}', 'StartTime=now')


@pytest.fixture
def cluster(monkeypatch):
    """Starts a cluster, which the Slurm commands of this test talk to."""
    # Beside pytest's folders, whose names leave no room for those of sockets, 108 bytes at most.
    with tempfile.TemporaryDirectory(prefix='slurm-') as folder:
        yield from _run_cluster(pathlib.Path(folder), monkeypatch)


def _run_cluster(folder, monkeypatch):
    folder.chmod(0o755)  # munged looks who may enter.
    host = socket.gethostname()
    for name in ('munge', 'state', f'spool-{host}', f'spool-{OTHER}'):
        (folder / name).mkdir(parents=True)
    key = folder / 'munge/key'
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    munge = {name: f'{folder}/munge/{name}' for name in ('key', 'socket', 'pid', 'log', 'seed')}
    munged = [
        'munged', '--force', f'--key-file={munge["key"]}', f'--socket={munge["socket"]}',
        f'--pid-file={munge["pid"]}', f'--log-file={munge["log"]}', f'--seed-file={munge["seed"]}',
    ]  # fmt: skip
    configuration = folder / 'slurm.conf'
    text = CONFIGURATION.format(
        host=host,
        other=OTHER,
        folder=folder,
        ports=_free_ports(3),
        max_array_size=MAX_ARRAY_SIZE,
    )
    configuration.write_text(text)
    monkeypatch.setenv('SLURM_CONF', str(configuration))
    daemons = [['slurmctld', '-c'], ['slurmd', '-N', host], ['slurmd', '-N', OTHER]]
    for daemon in (munged, *daemons):
        subprocess.run(daemon, check=True, capture_output=True)
    idle = lambda: ask('sinfo', '-h', '-N', '-p', 'main', '-o', '%T').split() == ['idle'] * 2  # noqa: E731
    try:
        wait_for('the start of the cluster', idle)
        yield
    finally:
        subprocess.run(['scancel', '--user=root'], check=False, capture_output=True)
        for path in [*folder.glob('slurm*.pid'), folder / 'munge/pid']:
            if path.exists():
                os.kill(int(path.read_text()), signal.SIGTERM)
        wait_for('the end of the daemons', lambda: not list(folder.glob('slurm*.pid')))
