"""Kills a run at random moments, starts it again each time, and compares how it ends.

  python -m benchmarks.kills --kills=20
  python -m benchmarks.kills --kills=20 --change_data

A short run on the digits is made once without interruption, and once killed (SIGKILL) so many
times, at moments drawn from its start-up, its training and its saving. Exit code 1 unless the two
final states, with parameters, BatchNorm's statistics and the optimizer's state, have one sha256.

With --change_data the run learns 400 images of noise by heart, and files are added and removed
between the kills. Exit code 1 unless each change is refused, and then, accepted, leaves validation
at chance: one training image in it would be one that the network knows.
"""

import argparse
import math
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import numpy as np
from PIL import Image

from flaxcls.training.data_record import ACCEPT
from flaxcls.training.logging import read_metrics
from flaxcls.training.restore import evaluate_workdir

_EXPERIMENT = [
    '--config=experiments/digits_resnet20.py', '--config.model.stage_sizes=1,1',
    '--config.model.width_multiplier=0.25', '--config.data.image_size=8',
    '--config.num_epochs=60', '--config.log_every_steps=10', '--config.checkpoint_every_steps=7',
]  # fmt: skip


_NOISE = [
    '--config=default', '--config.model.name=resnet20', '--config.model.stage_sizes=1,1',
    '--config.data.image_size=8', '--config.batch_size=32', '--config.num_epochs=150',
    '--config.checkpoint_every_steps=50', '--config.log_every_steps=50',
    '--config.eval_every_epochs=50',
]  # fmt: skip


def _start(workdir: pathlib.Path, experiment: Sequence[str] = _EXPERIMENT) -> subprocess.Popen:
    command = [sys.executable, '-m', 'flaxcls', 'train', *experiment, f'--workdir={workdir}']
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


def _kill_at(
    workdir: pathlib.Path, seconds: float, experiment: Sequence[str] = _EXPERIMENT
) -> bool:
    """Starts the run and kills it so much later; returns whether it was still alive."""
    process = _start(workdir, experiment)
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True
    return False


def _write_noise(path: pathlib.Path, rng: random.Random) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def _change(photos: pathlib.Path, rng: random.Random) -> None:
    """Removes some files, adds others, and copies one under a new name."""
    files = sorted(photos.glob('*/*.png'))
    for path in rng.sample(files, rng.randint(1, 4)):
        path.unlink()
    for _ in range(rng.randint(0, 4)):
        _write_noise(photos / rng.choice('ab') / f'{rng.randrange(10**6)}.png', rng)
    kept = rng.choice(sorted(photos.glob('*/*.png')))
    shutil.copy(kept, kept.with_name(f'copy{rng.randrange(10**6)}.png'))


def _refuses(workdir: pathlib.Path, experiment: Sequence[str]) -> bool:
    process = _start(workdir, experiment)
    out, _ = process.communicate()
    return process.returncode == 2 and 'is not what the run' in out and 'Traceback' not in out


def change_data(kills: int, rng: random.Random, folder: pathlib.Path) -> bool:
    """Kills a run whose data changes; returns whether all was refused, and nothing leaked."""
    photos, workdir = folder / 'photos', folder / 'run'
    for index in range(400):
        _write_noise(photos / 'ab'[index % 2] / f'{index}.png', rng)
    given = [*_NOISE, f'--config.data.source=folder:{photos}']
    accepting = [*given, '--accept_data_changes']
    killed, refused = 0, 0
    while killed < kills:
        alive = _kill_at(workdir, rng.uniform(4, 9), accepting)
        killed += 1
        if (workdir / 'images.json.gz').exists():
            _change(photos, rng)
            refused += _refuses(workdir, given)
            print(f'kill {killed}{"" if alive else " (had ended)"}: refused {refused}', flush=True)
        else:
            refused += 1  # Nothing had begun that the data could differ from.
    process = _start(workdir, accepting)
    out, _ = process.communicate()
    if process.returncode:
        sys.exit(f'the run ended with {process.returncode}:\n{out}')
    os.environ[ACCEPT] = '1'
    values = evaluate_workdir(workdir)
    learnt = max(r.get('train/accuracy', 0) for r in read_metrics(workdir))
    count, accuracy = values['val/count'], values['val/accuracy']
    bound = 4 * math.sqrt(0.25 / count)
    print(
        f'{refused} of {kills} changes refused; training accuracy {learnt:.1%}; validation '
        f'{accuracy:.1%} of {count}, chance 50% +- {bound:.1%}'
    )
    return refused == kills and abs(accuracy - 0.5) < bound


def main() -> None:
    parser = argparse.ArgumentParser(
        'python -m benchmarks.kills', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--seed', type=int, default=0, help='of the moments')
    parser.add_argument('--change_data', action='store_true', help='between the kills')
    flags = parser.parse_args()
    rng = random.Random(flags.seed)
    if flags.change_data:
        with tempfile.TemporaryDirectory() as folder:
            sys.exit(not change_data(flags.kills, rng, pathlib.Path(folder)))
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
