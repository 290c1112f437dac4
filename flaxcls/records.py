"""What a run leaves for the ledger: what was run, with what, on what, for how long, to what end."""

import datetime
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import time
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from flaxcls import config as config_lib
from flaxcls import models, writers

RECORD_FILE = 'record.json'
_PACKAGES = ('flaxcls', 'jax', 'jaxlib', 'flax', 'optax')


def experiment_hash(config: ConfigDict) -> str:
    """Returns 12 hex digits that differ between experiments, and not between runs of one.

    So the seed is left out, and so are the options that leave the result alone; what the data and
    the network fill in may have been filled in or not.
    """
    values = dict(config_lib.options(config))
    for key in config_lib.OBSERVING_OPTIONS | {'seed', 'model.num_classes'}:
        del values[key]
    values['data.image_size'] = (
        config.data.image_size or models.MODELS[config.model.name].image_size
    )
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


class RunRecord:
    """Keeps record.json in a workdir, up to the last save.

    It says of the experiment `config_hash`, `seed` and `options`, those that are not the defaults;
    of each process that worked on it, under `parts`, `commit`, `device`, `versions`, `began` (UTC),
    `from_step`, `to_step` and `seconds` of wall time, compilation and evaluation included; and of
    the result `step`, `total_steps` and `val`, the last evaluation.
    """

    def __init__(
        self, workdir: pathlib.Path, config: ConfigDict, *, from_step: int, total_steps: int
    ):
        self._path = workdir / RECORD_FILE
        parts = read_record(workdir).get('parts', []) if from_step else []
        self._part = {
            'commit': _commit(),
            'device': describe_devices(),
            'versions': _versions(),
            'began': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
            'from_step': from_step,
        }
        changed = config_lib.differences(config_lib.default_config(), config)
        self._record = {
            'config_hash': experiment_hash(config),
            'seed': config.seed,
            'options': {key: new for key, (_, new) in changed.items() if key != 'seed'},
            'total_steps': total_steps,
            'parts': [*parts, self._part],
        }
        self._began = time.monotonic()

    def update(self, step: int, val: Mapping[str, float] | None) -> None:
        """Takes down that the run has been saved at `step`, with its evaluation if there is one."""
        self._part |= {'to_step': step, 'seconds': round(time.monotonic() - self._began, 1)}
        self._record |= {'step': step} | ({'val': dict(val)} if val else {})
        if jax.process_index() == 0:
            writers.write_atomically(self._path, json.dumps(self._record, indent=1) + '\n')


def read_record(workdir: str | os.PathLike) -> dict[str, Any]:
    """Returns the record in a workdir as `RunRecord` describes it; {} where there is none."""
    try:
        return json.loads((pathlib.Path(workdir) / RECORD_FILE).read_text(encoding='utf-8'))
    except (FileNotFoundError, ValueError):
        return {}


def describe_devices() -> str:
    """Returns all devices of the run, as in '8 x TPU v5 lite' or '2 cores of AMD EPYC'."""
    if jax.default_backend() != 'cpu':
        return f'{jax.device_count()} x {jax.devices()[0].device_kind}'
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    processes = jax.process_count()
    noun = 'core' if cores == 1 else 'cores'
    return f'{cores} {noun} of {_processor()}' + (f' x {processes}' if processes > 1 else '')


def _processor() -> str:
    try:
        lines = pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    except OSError:  # Not Linux.
        return platform.processor() or platform.machine()
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.machine()


def _commit() -> str | None:
    """Returns the commit of the code that runs, with '+' where it was changed; None if unknown."""
    folder = pathlib.Path(__file__).parent
    git = lambda *words: subprocess.run(  # noqa: E731
        ['git', '-C', str(folder), *words], capture_output=True, text=True, check=True
    ).stdout.strip()
    try:
        git('ls-files', '--error-unmatch', pathlib.Path(__file__).name)
        changed = git('status', '--porcelain', '--untracked-files=no', '--', '.', '../experiments')
        return git('rev-parse', '--short=12', 'HEAD') + ('+' if changed else '')
    except (OSError, subprocess.CalledProcessError):  # Installed from a package, or no git.
        return None


def _versions() -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {'python': platform.python_version()} | versions
