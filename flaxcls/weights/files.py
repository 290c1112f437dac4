"""Files of weights, .pth and .safetensors, read and written."""

import pathlib
import re
from collections.abc import Mapping

import numpy as np
import safetensors
import safetensors.numpy

from flaxcls.errors import UserError

_TORCH_SUFFIXES = ('.pth', '.pt', '.bin')


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


def require_suffix(path: pathlib.Path) -> None:
    if path.suffix not in ('.safetensors', *_TORCH_SUFFIXES):
        raise UserError(
            f'{str(path)!r} is neither .safetensors nor {" nor ".join(_TORCH_SUFFIXES)}.'
        )


def normalize_names(tensors: StateDict) -> tuple[StateDict, list[str]]:
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


def write_state_dict(state: StateDict, path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.tmp')
    if path.suffix == '.safetensors':
        safetensors.numpy.save_file(state, temporary, metadata={'format': 'pt'})
    else:
        torch = _require_torch(path)
        torch.save({key: torch.from_numpy(value) for key, value in state.items()}, temporary)
    temporary.replace(path)
