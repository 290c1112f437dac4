"""Runs made of PyTorch weights, and the weights of runs as PyTorch has them."""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from flaxcls.config.config_dict import set_option, to_json
from flaxcls.config.files import load_config
from flaxcls.config.option import require_choice
from flaxcls.config.validation import validate
from flaxcls.config.workdir import (
    CLASSES_FILE,
    CONFIG_FILE,
    IMPORT_FILE,
    load_stored_config,
)
from flaxcls.errors import UserError
from flaxcls.models.image_size import require_image_size
from flaxcls.models.init import init_variables
from flaxcls.models.patterns import parse_patterns
from flaxcls.models.registry import MODELS
from flaxcls.system.files import write_atomically
from flaxcls.training import freezing, optimizers
from flaxcls.training.checkpoint_files import read_run_weights
from flaxcls.training.checkpoints import Checkpoints
from flaxcls.training.from_config import create_network, optimizer_options
from flaxcls.training.state import create_train_state
from flaxcls.weights.files import (
    StateDict,
    normalize_names,
    read_state_dict,
    require_numbers,
    require_suffix,
    write_state_dict,
)
from flaxcls.weights.state_dict import TensorSpec, from_state_dict, to_state_dict, torch_layout

_COUNTER = 'num_batches_tracked'


def import_weights(
    model_name: str,
    weights: str | os.PathLike,
    workdir: str | os.PathLike,
    *,
    config_path: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> list[str]:
    """Creates a workdir, at step 0, from a weights file, to evaluate or train as any other.

    Args:
      model_name: a row of MODELS.
      weights: .pth or .safetensors.
      workdir: must not have a run yet.
      config_path: an experiment file; None: evaluation on the paper's data set.
      overrides: {dotted key: value}, of the config.

    Returns:
      Sentences about what was changed on the way.

    Raises:
      UserError: the file is missing, damaged or another network's, or the workdir has a run.
    """
    workdir = pathlib.Path(workdir).expanduser()
    weights = pathlib.Path(weights).expanduser()
    if (workdir / CONFIG_FILE).exists():
        raise UserError(f'{str(workdir)!r} has a run already; choose another --workdir.')
    config = _make_config(model_name, config_path, overrides or {})
    tensors, notes = normalize_names(read_state_dict(weights))
    counters = {key: int(tensors.pop(key)) for key in list(tensors) if key.endswith(_COUNTER)}
    size = config.data.image_size
    if config.model.num_classes is None:
        entries = torch_layout(create_network(config), size)
        config.model.num_classes = _count_classes(tensors, entries)
    model = create_network(config)
    require_image_size(model, model_name, size)
    entries = torch_layout(model, size)
    tensors, head_notes = _fit(tensors, entries, f'{str(weights)!r} does not fit {model_name}')
    if head_notes:
        fresh = init_variables(model, jax.random.key(config.seed), size)
        tensors |= to_state_dict(fresh, [entry for entry in entries if _is_head(entry)])
        head_notes = [f'{head_notes[0]} of {model.num_classes}, drawn with seed {config.seed}.']
    tensors, dtype_notes = _as_float32(tensors)
    require_numbers(tensors, weights)
    variables = from_state_dict(tensors, entries)
    patterns = parse_patterns(config.freeze)
    freezing.require_trained(variables['params'], patterns)
    trained, _ = freezing.split_frozen(variables['params'], patterns)
    schedule = optax.constant_schedule(0.0)
    optimizer = optimizers.make_optimizer(trained, schedule, **optimizer_options(config))
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(create_train_state(variables, optimizer, trained), None)
    source = {'file': weights.name, 'sha256': _sha256(weights), _COUNTER: counters}
    write_atomically(workdir / IMPORT_FILE, json.dumps(source, indent=1) + '\n')
    write_atomically(workdir / CLASSES_FILE, 'null\n')  # The file has no names.
    write_atomically(workdir / CONFIG_FILE, to_json(config))
    return notes + head_notes + dtype_notes


def export_weights(
    workdir: str | os.PathLike, weights: str | os.PathLike, *, checkpoint: str = 'newest'
) -> StateDict:
    """Writes the weights of a run as PyTorch has them, and returns the state dict.

    Args:
      workdir: path of the directory that the run was trained in.
      weights: the file to write, .pth or .safetensors.
      checkpoint: newest, best or a step.

    Raises:
      UserError: there is no such run or checkpoint, or the file has another suffix.
    """
    workdir = pathlib.Path(workdir).expanduser()
    weights = pathlib.Path(weights).expanduser()
    require_suffix(weights)
    config = load_stored_config(workdir)
    step, weights_of_run = read_run_weights(workdir, checkpoint)
    entries = torch_layout(create_network(config), config.data.image_size)
    state = to_state_dict(weights_of_run, entries)
    state |= _counters(workdir, entries, step)
    write_state_dict(state, weights)
    return state


def _make_config(name: str, path: str | None, overrides: Mapping[str, Any]) -> ConfigDict:
    require_choice('model.name', name, list(MODELS))
    row = MODELS[name]
    config = load_config(path)
    config.model.name = name
    if path is None:
        imagenet = row.num_classes == 1000
        config.data.source = 'tfds:imagenet2012' if imagenet else 'tfds:cifar10'
        config.data.eval_crop_fraction = 224 / 256 if imagenet else 1.0
    for key, value in overrides.items():
        set_option(config, key, value)
    config.data.image_size = config.data.image_size or row.image_size
    validate(config)
    return config


def _count_classes(tensors: StateDict, entries: list[TensorSpec]) -> int | None:
    key = next(entry.key for entry in entries if _is_head(entry) and entry.path[-1] == 'bias')
    return len(tensors[key]) if key in tensors and tensors[key].ndim == 1 else None


def _is_head(entry: TensorSpec) -> bool:
    return entry.path[1] == 'head'


def _fit(
    tensors: StateDict, entries: list[TensorSpec], complaint: str
) -> tuple[StateDict, list[str]]:
    """Returns the tensors that fit, and the beginning of a note if the classifier does not.

    Raises:
      UserError: others do not fit, or are missing or unexpected; begins with `complaint`.
    """
    shapes = {entry.key: entry.shape for entry in entries}
    head = {entry.key for entry in entries if _is_head(entry)}
    wrong = {key for key in shapes.keys() & tensors.keys() if tensors[key].shape != shapes[key]}
    new_head = bool(wrong) and wrong <= head
    faults = [
        *(f'{key} is missing' for key in sorted(shapes.keys() - tensors.keys())),
        *(f'{key} is unexpected' for key in sorted(tensors.keys() - shapes.keys())),
        *(
            f'{key} is {tensors[key].shape} and should be {shapes[key]}'
            for key in sorted(wrong)
            if not new_head
        ),
    ]
    if faults:
        more = f', and {len(faults) - 6} more' if len(faults) > 6 else ''
        raise UserError(f'{complaint}: {", ".join(faults[:6])}{more}.')
    if not new_head:
        return tensors, []
    old = next(len(tensors[key]) for key in sorted(wrong))
    kept = {key: value for key, value in tensors.items() if key not in head}
    return kept, [f'the classifier of {old} classes is replaced by a new one']


def _as_float32(tensors: StateDict) -> tuple[StateDict, list[str]]:
    narrow = sorted({str(value.dtype) for value in tensors.values()} - {'float32'})
    notes = [f'weights of type {", ".join(narrow)} are kept as float32.'] if narrow else []
    return {key: value.astype(np.float32) for key, value in tensors.items()}, notes


def _counters(workdir: pathlib.Path, entries: list[TensorSpec], step: int) -> StateDict:
    """Returns BatchNorm's counts of batches, which torch keeps and which nothing here needs."""
    names = [e.key.replace('running_mean', _COUNTER) for e in entries if e.path[-1] == 'mean']
    path = workdir / IMPORT_FILE
    before = dict.fromkeys(names, 0)
    if path.exists():
        before = json.loads(path.read_text(encoding='utf-8'))[_COUNTER]
    return {name: np.array(count + step, np.int64) for name, count in before.items()}


def _sha256(path: pathlib.Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
