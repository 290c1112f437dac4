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

import flaxcls
from flaxcls import config as config_lib
from flaxcls import models, writers
from flaxcls.data.threads import count_cores

RECORD_FILE = 'record.json'
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax')
# In what runs of one experiment may differ.
_VARYING = config_lib.OBSERVING_OPTIONS | {'seed', 'model.dtype', 'model.num_classes'}


def experiment_options(config: ConfigDict) -> dict[str, Any]:
    """Returns the options that make the experiment, as JSON has them.

    Runs of one experiment differ in the seed, in the precision of the computation, and in what
    leaves the result alone; what the data and the network fill in may have been filled in or not.

    Raises:
      UserError: there is no such network.
    """
    name = config.model.name
    config_lib.require_choice('model.name', name, list(models.MODELS))
    values = {key: value for key, value in config_lib.options(config) if key not in _VARYING}
    values['data.image_size'] = config.data.image_size or models.MODELS[name].image_size
    return _as_json(values)


def experiment_hash(experiment: Mapping[str, Any]) -> str:
    """Returns 12 hex digits that stand for the options of an experiment."""
    text = json.dumps(experiment, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def recorded_experiment(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the `experiment_options` of the run that has recorded these options.

    An option that has been added since the run had then what is its default now.
    """
    defaults = experiment_options(config_lib.default_config())
    recorded = {key: value for key, value in options.items() if key not in _VARYING}
    return defaults | _as_json(recorded)


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


class RunRecord:
    """Keeps record.json in a workdir, up to the last save.

    It says of the experiment `config_hash`, `seed` and `options`; of each process that worked on
    it, under `parts`, `config_hash`, `commit`, `device`, `versions`, `began` (UTC), `from_step`,
    `to_step` and `seconds` of wall time, compilation and evaluation included; and of the result
    `step`, `total_steps` and `val`, the last evaluation.
    """

    def __init__(
        self, workdir: pathlib.Path, config: ConfigDict, *, from_step: int, total_steps: int
    ):
        self._path = workdir / RECORD_FILE
        earlier = read_record(workdir) if from_step else {}
        # The record may be ahead of the checkpoint that a killed run goes on from.
        parts = [
            part | {'to_step': min(part['to_step'], from_step)} for part in earlier.get('parts', [])
        ]
        config_hash = experiment_hash(experiment_options(config))
        self._part = {
            'config_hash': config_hash,
            # The first process writes the record; the others need not ask git.
            'commit': find_commit() if jax.process_index() == 0 else None,
            'device': describe_devices(),
            'versions': find_versions(),
            'began': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
            'from_step': from_step,
        }
        unseen = config_lib.OBSERVING_OPTIONS | {'seed'}
        self._record = {
            'config_hash': config_hash,
            'seed': config.seed,
            'options': {k: v for k, v in config_lib.options(config) if k not in unseen},
            'total_steps': total_steps,
            'parts': [*parts, self._part],
            'val': earlier.get('val'),
        }
        self._began = time.monotonic()

    def update(self, step: int, val: Mapping[str, float] | None) -> None:
        """Takes down that the run is saved at `step`, with its evaluation if there is one."""
        self._part |= {'to_step': step, 'seconds': round(time.monotonic() - self._began, 3)}
        self._record |= {'step': step} | ({'val': dict(val)} if val else {})
        if jax.process_index() == 0:
            writers.write_atomically(self._path, json.dumps(self._record, indent=1) + '\n')


def read_record(folder: str | os.PathLike, name: str = RECORD_FILE) -> dict[str, Any]:
    """Returns the record in a folder as `RunRecord` describes it; {}: there is none, or damaged."""
    try:
        record = json.loads((pathlib.Path(folder) / name).read_text(encoding='utf-8'))
    except (FileNotFoundError, ValueError):
        return {}
    fields = {'seed', 'options', 'total_steps', 'parts', 'step', 'val'}
    return record if isinstance(record, dict) and fields <= record.keys() else {}


def describe_devices() -> str:
    """Returns all devices of the run, as in '8 x TPU v5 lite' or '2 cores of AMD EPYC'."""
    if jax.default_backend() != 'cpu':
        return f'{jax.device_count()} x {jax.devices()[0].device_kind}'
    processes = jax.process_count()
    several = f'{processes} processes, each on ' if processes > 1 else ''
    return several + describe_cores()


def describe_cores() -> str:
    """Returns what this process may use of the processor, as in '2 cores of AMD EPYC'."""
    cores = count_cores()
    return f'{cores} {"core" if cores == 1 else "cores"} of {_processor()}'


def _processor() -> str:
    try:
        lines = pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    except OSError:  # Not Linux.
        return platform.processor() or platform.machine()
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.machine()


def find_commit() -> str | None:
    """Returns the commit of the code that runs, with '+' where it was changed; None if unknown."""
    folder = pathlib.Path(__file__).parent
    try:
        _git(folder, 'ls-files', '--error-unmatch', pathlib.Path(__file__).name)
        changed = _git(folder, 'status', '--porcelain', '--', '.', '../experiments')
        return _git(folder, 'rev-parse', '--short=12', 'HEAD') + ('+' if changed else '')
    except (OSError, subprocess.CalledProcessError):  # Installed from a package, or no git.
        return None


def _git(folder: pathlib.Path, *words: str) -> str:
    # Without its optional locks, since other processes and people use the checkout as well.
    command = ['git', '--no-optional-locks', '-C', str(folder), *words]
    result = subprocess.run(command, capture_output=True, check=True)
    return result.stdout.decode(errors='backslashreplace').strip()


def find_versions() -> dict[str, str]:
    """Returns the versions of Python, flaxcls and the packages that compute."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {'python': platform.python_version(), 'flaxcls': flaxcls.__version__} | versions
