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

from flaxcls.config.option import require_choice
from flaxcls.config.options import keys_of, options_with
from flaxcls.config.workdir import RECORD_FILE
from flaxcls.models.registry import MODELS
from flaxcls.ops import native
from flaxcls.system import files
from flaxcls.system.host_info import describe_devices, find_commit, find_versions


def experiment_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options that make the experiment, as JSON has them.

    Runs of one experiment differ in the seed, in the precision of the computation, and in what
    leaves the result alone; what the data and the network fill in may have been filled in or not.

    Args:
      options: all of a config, by dotted key.

    Raises:
      UserError: there is no such network.
    """
    name = options['model.name']
    require_choice('model.name', name, list(MODELS))
    values = _without_varying(options)
    values['data.image_size'] = options['data.image_size'] or MODELS[name].image_size
    return _as_json(values)


def _without_varying(options: Mapping[str, Any]) -> dict[str, Any]:
    varying = keys_of('neutral', 'varies')
    return {key: value for key, value in options.items() if key not in varying}


def experiment_hash(experiment: Mapping[str, Any]) -> str:
    """Returns 12 hex digits that stand for the options of an experiment.

    What is at its default has no part in it, so that a new option changes no hash.
    """
    defaults = recorded_experiment({})
    chosen = {
        key: value
        for key, value in _as_json(experiment).items()
        if key not in defaults or value != defaults[key]
    }
    text = json.dumps(chosen, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def recorded_experiment(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the `experiment_options` of the run that has recorded these options.

    An option that has been added since the run had then what is its default now.
    """
    defaults = experiment_options({key: row.default for key, row in options_with(()).items()})
    return _as_json(defaults | dict(_without_varying(options)))


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


class RunRecord:
    """Keeps record.json in a workdir, up to the last save.

    It says of the experiment `config_hash`, `seed` and `options`; of each process that worked on
    it, under `parts`, `config_hash`, `commit`, `device`, `versions`, `kernels` (of the CPU),
    `began` (UTC), `from_step`, `to_step` and `seconds` of wall time, compilation and evaluation
    included; and of the result `step`, `total_steps` and `val`, the last evaluation.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        options: Mapping[str, Any],
        *,
        from_step: int,
        total_steps: int,
    ):
        self._path = workdir / RECORD_FILE
        earlier = read_record(workdir) if from_step else {}
        if from_step and not earlier and self._path.exists():
            print(f'Note: {str(self._path)!r} is damaged; it begins anew with this part.')
        # The record may be ahead of the checkpoint that a killed run resumes from.
        parts = [
            part | {'to_step': min(part['to_step'], from_step)} for part in earlier.get('parts', [])
        ]
        config_hash = experiment_hash(experiment_options(options))
        self._part = {
            'config_hash': config_hash,
            # The first process writes the record; the others need not ask git.
            'commit': find_commit() if jax.process_index() == 0 else None,
            'device': describe_devices(),
            'versions': find_versions(),
            'kernels': native.status(),
            'began': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
            'from_step': from_step,
        }
        left_out = keys_of('neutral') | {'seed'}
        self._record = {
            'config_hash': config_hash,
            'seed': options['seed'],
            'options': {key: options[key] for key in sorted(options) if key not in left_out},
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


def note_on_kernels(workdir: pathlib.Path) -> str | None:
    """Returns a sentence if the run in `workdir` goes on with other kernels, else None."""
    parts = read_record(workdir).get('parts', [])
    before, now = (parts[-1].get('kernels') if parts else None), native.status()
    if before is None or before == now:
        return None
    return (
        f'the kernels of the steps until now were: {before}; now they are: {now}. Sums are rounded '
        'otherwise, so this is not to the last digit the run that it would have been.'
    )


def read_record(folder: str | os.PathLike, name: str = RECORD_FILE) -> dict[str, Any]:
    """Returns the record in a folder as `RunRecord` describes it; {}: there is none, or damaged."""
    try:
        record = json.loads((pathlib.Path(folder) / name).read_text(encoding='utf-8'))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    fields = {'seed', 'options', 'total_steps', 'parts', 'step', 'val'}
    if not isinstance(record, dict) or not fields <= record.keys():
        return {}
    parts = record['parts']
    is_whole = isinstance(parts, list) and isinstance(record['options'], dict)
    return record if is_whole and all(map(_is_part, parts)) else {}


def _is_part(part: Any) -> bool:
    """Returns whether a part of a run says where it began and ended, and how long it took."""
    numbers = ('from_step', 'to_step', 'seconds')
    return isinstance(part, dict) and all(isinstance(part.get(n), int | float) for n in numbers)
