"""What a run leaves for the ledger: what was run, with what, on what, for how long, to what end."""

import datetime
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from flaxcls.config import defaults as defaults_lib
from flaxcls.models import registry
from flaxcls.system import cli, files
from flaxcls.system.host_info import describe_devices, find_commit, find_versions

RECORD_FILE = 'record.json'


# In what runs of one experiment may differ.
_VARYING = defaults_lib.OBSERVING_OPTIONS | {'seed', 'model.dtype', 'model.num_classes'}


def experiment_options(config: ConfigDict) -> dict[str, Any]:
    """Returns the options that make the experiment, as JSON has them.

    Runs of one experiment differ in the seed, in the precision of the computation, and in what
    leaves the result alone; what the data and the network fill in may have been filled in or not.

    Raises:
      UserError: there is no such network.
    """
    name = config.model.name
    cli.require_choice('model.name', name, list(registry.MODELS))
    values = {key: value for key, value in defaults_lib.options(config) if key not in _VARYING}
    values['data.image_size'] = config.data.image_size or registry.MODELS[name].image_size
    return _as_json(values)


def experiment_hash(experiment: Mapping[str, Any]) -> str:
    """Returns 12 hex digits that stand for the options of an experiment."""
    text = json.dumps(experiment, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def recorded_experiment(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the `experiment_options` of the run that has recorded these options.

    An option that has been added since the run had then what is its default now.
    """
    defaults = experiment_options(defaults_lib.default_config())
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
        unseen = defaults_lib.OBSERVING_OPTIONS | {'seed'}
        self._record = {
            'config_hash': config_hash,
            'seed': config.seed,
            'options': {k: v for k, v in defaults_lib.options(config) if k not in unseen},
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
            files.write_atomically(self._path, json.dumps(self._record, indent=1) + '\n')


def read_record(folder: str | os.PathLike, name: str = RECORD_FILE) -> dict[str, Any]:
    """Returns the record in a folder as `RunRecord` describes it; {}: there is none, or damaged."""
    try:
        record = json.loads((pathlib.Path(folder) / name).read_text(encoding='utf-8'))
    except (FileNotFoundError, ValueError):
        return {}
    fields = {'seed', 'options', 'total_steps', 'parts', 'step', 'val'}
    return record if isinstance(record, dict) and fields <= record.keys() else {}
