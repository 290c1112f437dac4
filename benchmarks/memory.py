"""The memory that training takes, compilation included, beside PyTorch's: resident, at its peak.

  python -m benchmarks.memory                                        # five networks, 20 steps
  python -m benchmarks.memory --models=resnet20 --steps=20,500       # does it grow?

Each number is of a process of its own that takes so many steps on one batch, channels_last and
eager in PyTorch. `make bench-torch` sets up the environment.
"""

import argparse
import pathlib
import re
import subprocess
import sys

NETWORKS = 'resnet20,densenet_bc_100_12,alexnet,resnet50,densenet121'
SMALL = ('resnet20', 'densenet_bc_100_12')  # Of 32x32 pixels, 128 a batch; others have 16.
WHO = ('flaxcls', 'torch')


def take_steps(who: str, name: str, steps: int) -> None:
    """Takes steps in this process, and prints its peak and present memory, GiB."""
    batch = 128 if name in SMALL else 16
    if who == 'flaxcls':
        from benchmarks.our_calls import flaxcls_calls

        step = flaxcls_calls(name, batch, 'float32')['step']
    else:
        from benchmarks.torch_calls import torch_calls

        step = torch_calls(name, batch, 'float32', 'channels_last', 'eager')['step']
    for _ in range(steps):
        step()
    status = pathlib.Path('/proc/self/status').read_text()
    found = [int(re.search(rf'{key}:\s+(\d+)', status)[1]) / 2**20 for key in ('VmHWM', 'VmRSS')]
    print('memory', *found)


def measure(who: str, name: str, steps: int) -> tuple[float, float]:
    """Returns the peak and the present memory, GiB, of a process that takes so many steps."""
    command = [sys.executable, '-m', 'benchmarks.memory', f'--who={who}']
    command += [f'--models={name}', f'--steps={steps}']
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return tuple(map(float, out.split('memory ')[1].split()))


def main() -> None:
    parser = argparse.ArgumentParser(
        'benchmarks.memory', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument('--models', default=NETWORKS)
    parser.add_argument('--steps', default='20', help='numbers of steps, one after another')
    parser.add_argument('--who', choices=WHO, help='take the steps in this process')
    flags = parser.parse_args()
    if flags.who:
        take_steps(flags.who, flags.models, int(flags.steps))
        return
    for name in flags.models.split(','):
        for steps in map(int, flags.steps.split(',')):
            ours, theirs = (measure(who, name, steps) for who in WHO)
            print(
                f'{name}, {steps} steps: flaxcls {ours[0]:.2f} GiB at its peak, {ours[1]:.2f} '
                f'then; PyTorch {theirs[0]:.2f} and {theirs[1]:.2f}; {ours[0] / theirs[0]:.2f}x',
                flush=True,
            )


if __name__ == '__main__':
    main()
