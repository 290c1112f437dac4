"""Files of weights, .pth and .safetensors, read and written."""

import argparse
import collections
import datetime
import decimal
import fractions
import io
import pathlib
import re
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from flaxcls.errors import UserError
from flaxcls.system.files import write_atomically

_TORCH_SUFFIXES = ('.pth', '.pt', '.bin')


# What training scripts save around the weights; averaged ones are what they would be used as.
_WRAPPERS = ('model_ema', 'state_dict_ema', 'ema', 'state_dict', 'model', 'net', 'params')
_PREFIXES = ('module.', '_orig_mod.', 'model.')
# What they save beside them, which can do nothing when it is loaded.
_HARMLESS = [
    argparse.Namespace, collections.Counter, collections.defaultdict, datetime.datetime,
    datetime.date, datetime.timedelta, decimal.Decimal, fractions.Fraction, pathlib.PosixPath,
    pathlib.PurePosixPath, types.SimpleNamespace, set, frozenset, complex,
]  # fmt: skip
StateDict = dict[str, np.ndarray]


def read_state_dict(path: pathlib.Path) -> StateDict:
    """Returns the tensors of a weights file by name.

    Raises:
      UserError: there is no such file, it is damaged, or PyTorch is needed and missing.
    """
    require_suffix(path)
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
    with torch.serialization.safe_globals(_HARMLESS):
        state = torch.load(path, map_location='cpu', weights_only=True)
    state = _find_weights(state, torch)
    return {
        str(key): (value.float() if value.dtype == torch.bfloat16 else value).detach().numpy()
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    }


def _find_weights(state: Any, torch: Any) -> Mapping[Any, Any]:
    """Returns what a training script has saved of tensors, below what it has put around them."""
    while isinstance(state, Mapping):
        inner = next(
            (state[name] for name in _WRAPPERS if isinstance(state.get(name), Mapping)), None
        )
        if inner is None:
            break
        state = inner
    if not isinstance(state, Mapping) or not any(
        isinstance(v, torch.Tensor) for v in state.values()
    ):
        raise ValueError('there are no tensors by name in it')
    return state


def _require_torch(path: pathlib.Path):
    try:
        import torch  # noqa: PLC0415 - large, and needed for this format only
    except ImportError:
        raise UserError(
            f'{str(path)!r} needs PyTorch; run  pip install "flaxcls[torch]", or use .safetensors.'
        ) from None
    return torch


def require_suffix(path: pathlib.Path) -> None:
    if path.suffix not in ('.safetensors', *_TORCH_SUFFIXES):
        raise UserError(
            f'{str(path)!r} is neither .safetensors nor {" nor ".join(_TORCH_SUFFIXES)}.'
        )


def normalize_names(tensors: StateDict) -> tuple[StateDict, list[str]]:
    """Takes off the prefixes of wrappers, and gives old DenseNets torchvision's present names."""
    notes = []
    if 'n_averaged' in tensors:  # Of torch.optim.swa_utils.AveragedModel, beside its module.
        tensors = {key: value for key, value in tensors.items() if key != 'n_averaged'}
    while prefix := _common_prefix(tensors):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
        notes.append(f'took the prefix {prefix} off all names.')
    renamed = {re.sub(r'(denselayer\d+\.(?:norm|conv))\.(\d)', r'\1\2', k): k for k in tensors}
    if any(new != old for new, old in renamed.items()):
        notes.append('took the names of old DenseNets, such as denselayer1.norm.1, for norm1.')
    return {new: tensors[old] for new, old in renamed.items()}, notes


def _common_prefix(tensors: StateDict) -> str | None:
    names = list(tensors)
    return next((p for p in _PREFIXES if names and all(n.startswith(p) for n in names)), None)


def require_numbers(tensors: StateDict, path: pathlib.Path) -> None:
    """Raises UserError for what no network has: numbers that are not finite, negative variances."""
    for name, value in tensors.items():
        if not np.isfinite(value).all():
            raise UserError(f'{name} in {str(path)!r} is not finite; the file is of no use.')
        if name.endswith('running_var') and (value < 0).any():
            raise UserError(
                f'{name} in {str(path)!r} has a negative variance, {value.min():g}; the file is of '
                'no use.'
            )


def write_state_dict(state: StateDict, path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == '.safetensors':
        write_atomically(path, safetensors.numpy.save(state, metadata={'format': 'pt'}))
    else:
        torch, file = _require_torch(path), io.BytesIO()
        torch.save({key: torch.from_numpy(value) for key, value in state.items()}, file)
        write_atomically(path, file.getbuffer())
