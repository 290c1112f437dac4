"""Damages a run's checkpoints in one place at a time, and reads them as a command and a resume do.

  python -m benchmarks.checkpoint_faults --faults=200 --seed=0

A short run on the digits is made once. Each fault flips a bit, zeroes 512 bytes, cuts, removes or
empties one file of its checkpoints. Then the weights are read, and the run is opened to be resumed.
Exit code 1 unless each time what is read is what was saved, at the newest step or at one before.
"""

import collections
import contextlib
import io
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from flaxcls.config.config_dict import set_option
from flaxcls.config.files import load_config
from flaxcls.config.workdir import CHECKPOINTS_FOLDER, load_stored_config
from flaxcls.system.cli import CommandParser, run_command
from flaxcls.training.checkpoint_files import list_steps, read_run_state, read_run_weights
from flaxcls.training.checkpoints import Checkpoints
from flaxcls.training.loop import train_and_evaluate
from flaxcls.training.setup import build_setup

_RUN = {
    'model.stage_sizes': '1,1', 'model.width_multiplier': 0.25, 'data.image_size': 8,
    'num_epochs': 2, 'checkpoint_every_steps': 7,
}  # fmt: skip


def flip_bit(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    changed[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def zero_512(data: bytes, rng: np.random.Generator) -> bytes:
    start = int(rng.integers(max(1, len(data) - 512)))
    length = len(data[start : start + 512])
    return data[:start] + bytes(length) + data[start + length :]


def cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: rng.integers(len(data))]


FAULTS: dict[str, Callable[[bytes, np.random.Generator], bytes | None]] = {
    'bit flipped': flip_bit,
    '512 bytes zeroed': zero_512,
    'cut': cut,
    'emptied': lambda data, rng: b'',
    'removed': lambda data, rng: None,
}


class Fault(NamedTuple):
    """What was done to which file."""

    kind: str
    path: pathlib.Path

    def __str__(self) -> str:
        return f'{self.kind}: {self.path}'


def damage_one_file(folder: pathlib.Path, rng: np.random.Generator) -> Fault:
    """Damages a file below a folder, drawn like the kind of the fault."""
    files = sorted(path for path in folder.rglob('*') if path.is_file() and path.stat().st_size)
    path, kind = files[rng.integers(len(files))], list(FAULTS)[rng.integers(len(FAULTS))]
    data = FAULTS[kind](path.read_bytes(), rng)
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
    return Fault(kind, path.relative_to(folder))


class Originals:
    """What the checkpoints of a run held before any fault: the oracle."""

    def __init__(self, workdir: pathlib.Path):
        self.workdir = workdir
        self.like = build_setup(load_stored_config(workdir)).abstract_state()
        self.steps = list_steps(workdir / CHECKPOINTS_FOLDER)
        self._states = {
            step: read_run_state(workdir, str(step), self.like)[1] for step in self.steps
        }

    def load(self, step: int) -> Any:
        """Returns the state that was saved at a step."""
        return self._states[step]

    def read_damaged(self, folder: pathlib.Path) -> tuple[int, int]:
        """Returns the steps that are read of a damaged copy, as weights and to be resumed.

        Raises:
          AssertionError: something else was read than was saved.
        """
        step, weights = read_run_weights(folder)
        state = self._states[step]
        _require_equal(weights, {'params': state.params, 'batch_stats': state.batch_stats})
        with Checkpoints(folder) as checkpoints:
            resumed = checkpoints.restore_newest(self.like)
        _require_equal(resumed, self._states[int(resumed.step)])
        return step, int(resumed.step)


def _require_equal(got: Any, expected: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def make_run(workdir: pathlib.Path) -> None:
    """Trains for some seconds, and saves more than once."""
    config = load_config('experiments/digits_resnet20.py')
    for key, value in _RUN.items():
        set_option(config, key, value)
    train_and_evaluate(config, workdir, brief=True)


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('python -m benchmarks.checkpoint_faults', __doc__)
    parser.add_argument('--faults', type=int, default=200)
    parser.add_argument('--seed', type=int, default=0)
    flags = parser.parse_args(argv)
    rng, began = np.random.default_rng(flags.seed), time.perf_counter()
    outcomes, wrong = collections.Counter(), []
    with tempfile.TemporaryDirectory() as root:
        make_run(pathlib.Path(root, 'run'))
        originals, copy = Originals(pathlib.Path(root, 'run')), pathlib.Path(root, 'copy')
        for _ in range(flags.faults):
            shutil.copytree(originals.workdir, copy)
            fault = damage_one_file(copy / CHECKPOINTS_FOLDER, rng)
            try:
                with contextlib.redirect_stderr(io.StringIO()):
                    step, resumed = originals.read_damaged(copy)
                newest = originals.steps[-1]
                outcomes['read whole' if step == resumed == newest else 'passed over'] += 1
            except Exception as error:  # Whatever it is, it is what is looked for.
                wrong.append(f'{fault}: {type(error).__name__}: {str(error)[:300]}')
            shutil.rmtree(copy)
    for line in wrong:
        print(line)
    told = ', '.join(f'{count} {what}' for what, count in outcomes.items())
    seconds = time.perf_counter() - began
    print(f'{flags.faults} faults (seed {flags.seed}): {told}, {len(wrong)} wrong; {seconds:.0f} s')
    sys.exit(bool(wrong))


if __name__ == '__main__':
    run_command(main)
