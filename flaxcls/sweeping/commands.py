"""The command of a run, its environment, and the package that takes it somewhere."""

import contextlib
import datetime
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from flaxcls.config.option import as_flag
from flaxcls.errors import UserError
from flaxcls.sweeping.definition import SweepRun

JOBS_FOLDER = 'jobs'


def command_of(run: SweepRun, config: str) -> list[str]:
    """Returns the command of a run, which works as well by hand."""
    words = [sys.executable, '-m', 'flaxcls', 'train']
    words += [f'--config={config}', f'--workdir={run.workdir}']
    return words + [f'--config.{key}={as_flag(value)}' for key, value in run.overrides.items()]


def share_of_accelerators(
    slot: int, jobs: int, environment: Mapping[str, str]
) -> dict[str, str | None]:
    """Returns the variables that give a job its GPUs: all, or its share where several jobs run.

    submitit hides all GPUs from a job that has not asked for some. Where there are fewer GPUs than
    jobs, each job gets its part of the memory. On a CPU all jobs share all cores, since with other
    numbers of threads a run would end with other roundings.
    """
    visible = environment.get('CUDA_VISIBLE_DEVICES')
    if jobs == 1:
        return {'CUDA_VISIBLE_DEVICES': visible}
    # Where the variable is empty, the user wants none.
    devices = _list_gpus() if visible is None else [name for name in visible.split(',') if name]
    if not devices:
        return {'CUDA_VISIBLE_DEVICES': visible}
    if len(devices) >= jobs:
        return {'CUDA_VISIBLE_DEVICES': ','.join(devices[slot::jobs])}
    sharing = -(-jobs // len(devices))
    return {
        'CUDA_VISIBLE_DEVICES': devices[slot % len(devices)],
        'XLA_PYTHON_CLIENT_MEM_FRACTION': f'{0.9 / sharing:.2f}',
    }


def _list_gpus() -> list[str]:
    try:
        listed = subprocess.run(['nvidia-smi', '-L'], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    # Below a GPU stand the parts (MIG) that it is divided into.
    gpus = [line for line in listed.stdout.splitlines() if line.startswith('GPU ')]
    return [str(index) for index, _ in enumerate(gpus)]


def without_caches_of_this_machine(environment: Mapping[str, str]) -> dict[str, str | None]:
    """Lets each node find its own folder of compiled programs: nodes may be of other processors."""
    folder = pathlib.Path(environment.get('JAX_COMPILATION_CACHE_DIR', ''))
    return {'JAX_COMPILATION_CACHE_DIR': None} if folder.name.startswith('xla-') else {}


def new_folder(root: pathlib.Path, kind: str) -> pathlib.Path:
    """Returns a folder for submitit's files that no other command has: it names them by process."""
    now = datetime.datetime.now().strftime('%Y%m%d-%H%M%S')
    return root / JOBS_FOLDER / f'{kind}-{now}-{os.getpid()}'


def last_line(text: str) -> str:
    """Returns the last line that is not empty, which of an error is its sentence; '' if none is."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ''


@contextlib.contextmanager
def kept_from_children(number: signal.Signals) -> Iterator[None]:
    """Blocks a signal in processes started within; this one gets it afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def require_submitit() -> Any:
    """Returns the module; raises UserError if the extra is not installed."""
    try:
        import submitit  # noqa: PLC0415 - an extra
    except ImportError:
        raise UserError("a sweep is run with submitit; run  pip install 'flaxcls[sweep]'") from None
    return submitit
