"""Computes, with PyTorch, what the networks here are checked against; writes tests/goldens/.

  pip install torch torchvision timm pytorchcv
  python -m benchmarks.make_goldens [NAME ...]

For each case of `parity_cases`: logits in evaluation at three sizes; logits, loss, gradients and
BatchNorm's running statistics of a training step; and the loss after one step of SGD. Everything is
computed in float64. Weights and images are made from names, so none is stored.
"""

import importlib
import json
import pathlib
import re
import sys

import numpy as np
import torch

from benchmarks import parity_cases as cases

FOLDER = pathlib.Path(__file__).parent.parent / 'tests/goldens'


def main() -> None:
    for name in sys.argv[1:] or cases.CASES:
        golden = compute(cases.CASES[name])
        np.savez_compressed(FOLDER / f'{name}.npz', **golden)
        print(
            f'{name}: loss {golden["loss"]:.6f}, then {golden["loss_after_step"]:.6f}', flush=True
        )


def compute(case: cases.Case) -> dict[str, np.ndarray]:
    """Returns the arrays of one golden."""
    model, keys = build(case)
    golden = {'versions': np.array(json.dumps(versions())), 'keys': np.array(digest(model, keys))}
    model.eval()
    with torch.no_grad():
        for height, width in case.eval_sizes:
            logits = model(to_torch(cases.make_images(1, height, width)))
            golden[f'eval_{height}x{width}'] = kept(logits)

    model.train()
    images = to_torch(cases.make_images(4, case.train_size, case.train_size))
    logits = model(images)
    labels = torch.from_numpy(cases.make_labels(4, logits.shape[1]))
    loss = torch.nn.functional.cross_entropy(logits, labels)
    loss.backward()
    parameters = dict(model.named_parameters())
    gradients = {keys[key]: value.grad.numpy() for key, value in parameters.items()}
    statistics = {
        keys[key]: value.numpy() for key, value in model.named_buffers() if 'running_' in key
    }
    golden |= {
        'train_logits': kept(logits),
        'loss': loss.detach().numpy(),
        'gradients': cases.sketch(gradients).astype(np.float32),
        'statistics': cases.sketch(statistics).astype(np.float32),
    }
    torch.optim.SGD(model.parameters(), cases.LEARNING_RATE).step()
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(images), labels)
    return golden | {'loss_after_step': loss.numpy()}


def build(case: cases.Case) -> tuple[torch.nn.Module, dict[str, str]]:
    """Returns the network in float64 with the case's weights, and its key -> ours."""
    if case.library == 'torchvision':
        model = importlib.import_module('torchvision.models').get_model(case.their_name)
    elif case.library == 'timm':
        model = importlib.import_module('timm').create_model(case.their_name)
    else:
        provider = importlib.import_module('pytorchcv.model_provider')
        model = provider.get_model(case.their_name)
        model.features.final_pool = torch.nn.AdaptiveAvgPool2d(1)  # Theirs takes one size alone.
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    state = {key: value for key, value in model.state_dict().items() if 'num_batches' not in key}
    keys = {key: key for key in state}
    if case.library == 'pytorchcv':
        head = 'classifier' if 'densenet' in case.their_name else 'fc'
        keys = {key: rename_pytorchcv(key, head) for key in state}
    for key, value in state.items():
        value.copy_(torch.from_numpy(cases.make_tensor(keys[key], tuple(value.shape))))
    return model.double(), keys


def rename_pytorchcv(key: str, head: str) -> str:
    """Returns the torchvision-like name of a parameter of pytorchcv's ResNet or DenseNet."""
    rules = [
        (r'^output\.', f'{head}.'),
        (r'features\.init_block\.(conv\.)?(conv|bn)\.', lambda m: f'{m[2]}1.'),
        (r'features\.init_block\.', 'features.conv0.'),
        (r'features\.post_activ\.bn\.', 'features.norm4.'),
        (
            r'features\.stage(\d+)\.unit(\d+)\.body\.conv(\d+)\.(conv|bn)\.',
            lambda m: f'layer{m[1]}.{int(m[2]) - 1}.{m[4]}{m[3]}.',
        ),
        (
            r'features\.stage(\d+)\.unit(\d+)\.identity_conv\.(conv|bn)\.',
            lambda m: f'layer{m[1]}.{int(m[2]) - 1}.downsample.{int(m[3] == "bn")}.',
        ),
        (
            r'features\.stage(\d+)\.unit(\d+)\.conv(\d*)\.(conv|bn)\.',
            lambda m: (
                f'features.denseblock{m[1]}.denselayer{m[2]}.'
                f'{"norm" if m[4] == "bn" else "conv"}{m[3] or 1}.'
            ),
        ),
        (
            r'features\.stage(\d+)\.trans\d+\.conv\.(conv|bn)\.',
            lambda m: f'features.transition{int(m[1]) - 1}.{"norm" if m[2] == "bn" else "conv"}.',
        ),
    ]
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def digest(model: torch.nn.Module, keys: dict[str, str]) -> str:
    state = model.state_dict()
    return cases.digest({ours: state[key].shape for key, ours in keys.items()})


def versions() -> dict[str, str]:
    names = ('torch', 'torchvision', 'timm', 'pytorchcv')
    return {name: importlib.import_module(name).__version__ for name in names}


def to_torch(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2)).double().contiguous()


def kept(logits: torch.Tensor) -> np.ndarray:
    return logits.detach().numpy()[:, : cases.KEPT_LOGITS].astype(np.float32)


if __name__ == '__main__':
    main()
