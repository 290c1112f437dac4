"""What the networks are compared on: cases, and weights and images that follow from names alone.

Nothing here needs PyTorch or JAX, so that both sides make the same inputs.
"""

import hashlib
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

KEPT_LOGITS = 32  # Of each image: enough to see a fault, few enough to be kept in the repository.
LEARNING_RATE = 1e-3


class Case(NamedTuple):
    """A network here, and the same one there.

    Attributes:
      model: a row of flaxcls.models.MODELS.
      library: torchvision, timm or pytorchcv.
      their_name: of the constructor there.
      options: for flaxcls.create_model.
      eval_sizes: (height, width) of the images that are classified.
      train_size: side of the images of the training step.
    """

    model: str
    library: str
    their_name: str
    options: Mapping[str, Any] = {}
    eval_sizes: tuple[tuple[int, int], ...] = ((224, 224), (225, 225), (256, 192))
    train_size: int = 64


_CIFAR_SIZES = ((32, 32), (33, 33), (40, 24))


def _cifar(model, their_name, **options):
    return Case(model, 'pytorchcv', f'{their_name}_cifar10', options, _CIFAR_SIZES, 32)


CASES = {
    **{
        name: Case(name, 'torchvision', name)
        for name in (
            'alexnet', 'vgg16', 'vgg16_bn', 'mobilenet_v2', 'resnet18', 'resnet34', 'resnet50',
            'resnet101', 'resnet152', 'resnext50_32x4d', 'wide_resnet50_2', 'densenet121',
            'densenet161', 'densenet169', 'densenet201',
        )
    },
    'resnet18_d': Case('resnet18_d', 'timm', 'resnet18d'),
    'resnet50_d': Case('resnet50_d', 'timm', 'resnet50d'),
    'resnet18_v2': Case('resnet18_v2', 'timm', 'resnetv2_18'),
    'resnet50_v2': Case('resnet50_v2', 'timm', 'resnetv2_50'),
    'resnet50_v1': Case('resnet50_v1', 'pytorchcv', 'resnet50'),
    'resnet20_b': _cifar('resnet20', 'resnet20', shortcut='B'),
    'resnet56_b': _cifar('resnet56', 'resnet56', shortcut='B'),
    'densenet_c_40_12': _cifar(
        'densenet_40_12', 'densenet40_k12', compression=0.5, stem_features=24
    ),
    'densenet_bc_40_12': _cifar('densenet_bc_100_12', 'densenet40_k12_bc', block_sizes=(6, 6, 6)),
    'densenet_bc_100_12': _cifar('densenet_bc_100_12', 'densenet100_k12_bc'),
}  # fmt: skip


def make_tensor(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the float32 tensor `key` of a state dict; BatchNorm's are far from 0 and 1."""
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    if len(shape) > 1:
        fan_in = np.prod(shape[1:])
        return (rng.standard_normal(shape) * np.sqrt(2 / fan_in)).astype(np.float32)
    if key.endswith(('running_var', 'weight')):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return (0.1 * rng.standard_normal(shape)).astype(np.float32)


def make_images(count: int, height: int, width: int) -> np.ndarray:
    """Returns float32 noise [count, height, width, 3]."""
    rng = np.random.default_rng((count, height, width))
    return rng.standard_normal((count, height, width, 3)).astype(np.float32)


def make_labels(count: int, num_classes: int) -> np.ndarray:
    """Returns int64 labels [count]."""
    return np.random.default_rng(count).integers(num_classes, size=count)


def digest(shapes: Mapping[str, Iterable[int]]) -> str:
    """Returns a sha256 of the names and shapes of a state dict."""
    lines = [f'{key} {tuple(shape)}\n' for key, shape in sorted(shapes.items())]
    return hashlib.sha256(''.join(lines).encode()).hexdigest()


def sketch(tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns [tensors, 2] in the order of their names: the norm, and a projection at random.

    The projection is a sum with weights from N(0, 1), so an error anywhere in the tensor changes it
    by about the error's norm.
    """
    rows = []
    for key, tensor in sorted(tensors.items()):
        values = np.asarray(tensor, np.float64).reshape(-1)
        direction = np.random.default_rng(zlib.crc32(b'sketch' + key.encode()))
        rows.append((np.linalg.norm(values), values @ direction.standard_normal(values.size)))
    return np.array(rows).reshape(-1, 2)
