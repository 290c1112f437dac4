"""Weights from PyTorch, and to it.

  python -m flaxcls.torch_weights import --model=resnet50 --weights=resnet50.pth --workdir=runs/tv
  python -m flaxcls.main --mode=evaluate --workdir=runs/tv --config.data.source=folder:PATH
  python -m flaxcls.torch_weights export --workdir=runs/tv --weights=resnet50.safetensors

Weights are files .pth (which need PyTorch: the extra [torch]) or .safetensors, with the names of
torchvision or timm; see flaxcls/torch_layout.py. --config.KEY=VALUE sets options of the workdir,
such as config.model.num_classes, whose change gives the network a new classifier.
"""

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
import safetensors
import safetensors.numpy
from ml_collections import ConfigDict

from flaxcls import config as config_lib
from flaxcls import models, optim
from flaxcls.checkpoint import Checkpoints
from flaxcls.errors import CommandParser, UserError, run_command
from flaxcls.experiment_files import load_config
from flaxcls.models import initialization
from flaxcls.run_setup import CLASSES_FILE, CONFIG_FILE, load_stored_config
from flaxcls.torch_layout import Entry, from_state_dict, to_state_dict, torch_layout
from flaxcls.train_state import create_train_state
from flaxcls.validation import validate
from flaxcls.writers import write_atomically

_IMPORT_FILE = 'imported.json'
_TORCH_SUFFIXES = ('.pth', '.pt', '.bin')
_COUNTER = 'num_batches_tracked'
StateDict = dict[str, np.ndarray]


def import_weights(
    model_name: str,
    weights: str | os.PathLike,
    workdir: str | os.PathLike,
    *,
    config_path: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> list[str]:
    """Makes a workdir, at step 0, of a weights file; evaluation and training take it as any other.

    Args:
      model_name: a row of MODELS.
      weights: .pth or .safetensors.
      workdir: must not have a run yet.
      config_path: an experiment file; None: evaluation on the paper's data set.
      overrides: of the config.

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
    tensors, notes = _normalize(read_state_dict(weights))
    counters = {key: int(tensors.pop(key)) for key in list(tensors) if key.endswith(_COUNTER)}
    if config.model.num_classes is None:
        config.model.num_classes = _count_classes(tensors, config)
    model = models.model_from_config(config)
    models.require_image_size(model, model_name, config.data.image_size)
    variables, head_notes = _fill(model, config, tensors, weights)
    patterns = models.frozen_patterns(config)
    trained, _ = optim.split_frozen(variables['params'], patterns)
    optimizer = optim.make_optimizer(config, optax.constant_schedule(0.0), trained)
    state = create_train_state(variables, optimizer, patterns)
    checkpoints = Checkpoints(workdir)
    checkpoints.save(state, None)
    checkpoints.close()
    source = {'file': weights.name, 'sha256': _sha256(weights), _COUNTER: counters}
    write_atomically(workdir / _IMPORT_FILE, json.dumps(source, indent=1) + '\n')
    write_atomically(workdir / CLASSES_FILE, 'null\n')  # The file does not tell the names.
    write_atomically(workdir / CONFIG_FILE, config_lib.to_json(config))
    return notes + head_notes


def export_weights(
    workdir: str | os.PathLike, weights: str | os.PathLike, *, checkpoint: str = 'newest'
) -> StateDict:
    """Writes the weights of a run as PyTorch has them, and returns the state dict.

    Args:
      workdir: of the run.
      weights: the file to write, .pth or .safetensors.
      checkpoint: newest, best or a step.

    Raises:
      UserError: there is no such run or checkpoint, or the file has another suffix.
    """
    workdir = pathlib.Path(workdir).expanduser()
    weights = pathlib.Path(weights).expanduser()
    _require_suffix(weights)
    config = load_stored_config(workdir)
    checkpoints = Checkpoints(workdir, read_only=True)
    step = checkpoints.find(checkpoint)
    weights_of_run = checkpoints.restore_weights(step)
    checkpoints.close()
    entries = torch_layout(models.model_from_config(config), config.data.image_size)
    state = to_state_dict(weights_of_run, entries)
    state |= _counters(workdir, entries, step)
    _write_state_dict(state, weights)
    return state


def _make_config(name: str, path: str | None, overrides: Mapping[str, Any]) -> ConfigDict:
    config_lib.require_choice('model.name', name, list(models.MODELS))
    row = models.MODELS[name]
    config = load_config(path)
    config.model.name = name
    if path is None:
        imagenet = row.num_classes == 1000
        config.data.source = 'tfds:imagenet2012' if imagenet else 'tfds:cifar10'
        config.data.eval_crop_fraction = 224 / 256 if imagenet else 1.0
    for key, value in overrides.items():
        config_lib.set_option(config, key, value)
    config.data.image_size = config.data.image_size or row.image_size
    validate(config)
    return config


def read_state_dict(path: pathlib.Path) -> StateDict:
    """Returns the tensors of a weights file by name.

    Raises:
      UserError: there is no such file, it is damaged, or PyTorch is needed and missing.
    """
    _require_suffix(path)
    if not path.is_file():
        raise UserError(f'there is no weights file {str(path)!r}.')
    try:
        if path.suffix == '.safetensors':
            return safetensors.numpy.load_file(path)
        return _read_torch(path)
    except UserError:
        raise
    except Exception as error:  # Of the kinds that unpickling and parsing a damaged file have.
        reason = ' '.join(str(error).split())[:200]
        raise UserError(f'{str(path)!r} is damaged, or no file of weights ({reason}).') from None


def _read_torch(path: pathlib.Path) -> StateDict:
    torch = _require_torch(path)
    state = torch.load(path, map_location='cpu', weights_only=True)
    for wrapper in ('state_dict', 'model'):  # What training scripts save around the weights.
        state = state[wrapper] if isinstance(state.get(wrapper), Mapping) else state
    return {
        key: (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    }


def _require_torch(path: pathlib.Path):
    try:
        import torch  # noqa: PLC0415 - large, and needed for this format only
    except ImportError:
        raise UserError(
            f'{str(path)!r} needs PyTorch; run  pip install "flaxcls[torch]", or use .safetensors.'
        ) from None
    return torch


def _require_suffix(path: pathlib.Path) -> None:
    if path.suffix not in ('.safetensors', *_TORCH_SUFFIXES):
        raise UserError(
            f'{str(path)!r} is neither .safetensors nor {" nor ".join(_TORCH_SUFFIXES)}.'
        )


def _normalize(tensors: StateDict) -> tuple[StateDict, list[str]]:
    """Takes off the prefixes of wrappers, and gives old DenseNets torchvision's present names."""
    notes = []
    for prefix in ('module.', '_orig_mod.', 'model.'):
        if tensors and all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
            notes.append(f'took the prefix {prefix} off all names.')
    renamed = {re.sub(r'(denselayer\d+\.(?:norm|conv))\.(\d)', r'\1\2', k): k for k in tensors}
    if any(new != old for new, old in renamed.items()):
        notes.append('took the names of old DenseNets, such as denselayer1.norm.1, for norm1.')
    return {new: tensors[old] for new, old in renamed.items()}, notes


def _count_classes(tensors: StateDict, config: ConfigDict) -> int | None:
    entries = torch_layout(models.model_from_config(config), config.data.image_size)
    key = next(entry.key for entry in entries if _is_head(entry) and entry.path[-1] == 'bias')
    return len(tensors[key]) if key in tensors and tensors[key].ndim == 1 else None


def _is_head(entry: Entry) -> bool:
    return entry.path[1] == 'head'


def _fill(model: nn.Module, config: ConfigDict, tensors: StateDict, weights: pathlib.Path):
    """Returns the variables of `model` from `tensors`, and what is to be said about the head."""
    entries = torch_layout(model, config.data.image_size)
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
        raise UserError(
            f'{str(weights)!r} does not fit {config.model.name}: {", ".join(faults[:6])}{more}.'
        )
    notes = []
    if new_head:
        initial = initialization.init_variables(
            model, jax.random.key(config.seed), config.data.image_size
        )
        fresh = to_state_dict(initial, [entry for entry in entries if _is_head(entry)])
        old = next(len(tensors[key]) for key in sorted(wrong))
        tensors = tensors | fresh
        notes.append(
            f'the classifier of {old} classes is replaced by a new one of '
            f'{config.model.num_classes}, drawn with seed {config.seed}.'
        )
    narrow = {str(value.dtype) for value in tensors.values()} - {'float32'}
    if narrow:
        notes.append(f'weights of type {", ".join(sorted(narrow))} are kept as float32.')
    tensors = {key: value.astype(np.float32) for key, value in tensors.items()}
    return from_state_dict(tensors, entries), notes


def _counters(workdir: pathlib.Path, entries: list[Entry], step: int) -> StateDict:
    """Returns BatchNorm's counts of batches, which torch keeps and which nothing here needs."""
    names = [e.key.replace('running_mean', _COUNTER) for e in entries if e.path[-1] == 'mean']
    path = workdir / _IMPORT_FILE
    before = dict.fromkeys(names, 0)
    if path.exists():
        before = json.loads(path.read_text(encoding='utf-8'))[_COUNTER]
    return {name: np.array(count + step, np.int64) for name, count in before.items()}


def _write_state_dict(state: StateDict, path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.tmp')
    if path.suffix == '.safetensors':
        safetensors.numpy.save_file(state, temporary, metadata={'format': 'pt'})
    else:
        torch = _require_torch(path)
        torch.save({key: torch.from_numpy(value) for key, value in state.items()}, temporary)
    temporary.replace(path)


def _sha256(path: pathlib.Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('flaxcls.torch_weights', __doc__)
    parser.add_argument('action', choices=['import', 'export'])
    parser.add_argument('--model', help='to import: a row of python -m flaxcls.models')
    parser.add_argument('--weights', required=True, help='the .pth or .safetensors file')
    parser.add_argument('--workdir', required=True, help='of the run')
    parser.add_argument('--config', help='to import: an experiment file for the other options')
    parser.add_argument('--checkpoint', help='to export: newest (the default), best or a step')
    flags, rest = parser.parse_known_args(argv)
    overrides = config_lib.parse_overrides(rest, ['--model', '--weights', '--workdir', '--config'])
    if flags.action == 'import':
        _require_absent('export', checkpoint=flags.checkpoint)
        if not flags.model:
            raise UserError('import needs --model=NAME; python -m flaxcls.models lists them.')
        notes = import_weights(
            flags.model, flags.weights, flags.workdir,
            config_path=flags.config, overrides=overrides,
        )  # fmt: skip
        for note in notes:
            print(f'Note: {note}')
        print(f'{flags.model} with the weights of {flags.weights} is in {flags.workdir}.')
    else:
        _require_absent('import', model=flags.model, config=flags.config, **overrides)
        checkpoint = flags.checkpoint or 'newest'
        state = export_weights(flags.workdir, flags.weights, checkpoint=checkpoint)
        print(f'wrote {len(state)} tensors to {flags.weights}.')


def _require_absent(action: str, **flags: Any) -> None:
    for name, value in flags.items():
        if value is not None:
            raise UserError(f'--{name}={value} belongs to the action {action}; leave it out.')


if __name__ == '__main__':
    run_command(main)
