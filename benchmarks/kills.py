"""Kills a run at random moments, starts it again each time, and compares how it ends.

  python -m benchmarks.kills --kills=20

A short run on the digits is made once without interruption, and once killed (SIGKILL) so many
times, at moments drawn from its start-up, its training and its saving. Exit code 1 unless the two
final states, with parameters, BatchNorm's statistics and the optimizer's state, have one sha256.
"""

import argparse
import pathlib
import random
import subprocess
import sys
import tempfile
import time

_EXPERIMENT = [
    '--config=experiments/digits_resnet20.py', '--config.model.stage_sizes=1,1',
    '--config.model.width_multiplier=0.25', '--config.data.image_size=8',
    '--config.num_epochs=60', '--config.log_every_steps=10', '--config.checkpoint_every_steps=7',
]  # fmt: skip


def _start(workdir: pathlib.Path) -> subprocess.Popen:
    command = [sys.executable, '-m', 'flaxcls', 'train', *_EXPERIMENT, f'--workdir={workdir}']
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _finish(workdir: pathlib.Path) -> str:
    """Returns the sha256 of the run's final state."""
    process = _start(workdir)
    out, _ = process.communicate()
    if process.returncode:
        sys.exit(f'the run ended with {process.returncode}:\n{out}')
    return out.split('state sha256 ')[1].split()[0]


def _seconds_to_first_step(workdir: pathlib.Path) -> float:
    began = time.monotonic()
    process = _start(workdir)
    for line in process.stdout:
        if line.startswith('step '):
            break
    process.kill()
    process.communicate()
    return time.monotonic() - began


def _kill_at(workdir: pathlib.Path, seconds: float) -> bool:
    """Starts the run and kills it so much later; returns whether it was still alive."""
    process = _start(workdir)
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(
        'python -m benchmarks.kills', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--seed', type=int, default=0, help='of the moments')
    flags = parser.parse_args()
    rng = random.Random(flags.seed)
    with tempfile.TemporaryDirectory() as folder:
        straight = _finish(pathlib.Path(folder) / 'straight')
        print(f'uninterrupted: {straight}', flush=True)
        start_up = _seconds_to_first_step(pathlib.Path(folder) / 'timed')
        workdir, kills = pathlib.Path(folder) / 'killed', 0
        while kills < flags.kills:
            moment = rng.uniform(0.5, 2.0) * start_up
            if not _kill_at(workdir, moment):
                sys.exit(f'the run ended after {kills} kills; make it longer.')
            kills += 1
            names = [p.name for p in (workdir / 'checkpoints').glob('*')]
            print(f'kill {kills} after {moment:.1f} s; checkpoints {sorted(names)}', flush=True)
        killed = _finish(workdir)
    print(f'killed {kills} times: {killed}')
    sys.exit(int(killed != straight))


if __name__ == '__main__':
    main()
