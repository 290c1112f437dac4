"""Where a network's arrays are in a PyTorch state dict: names and axes, both ways.

Names are torchvision's for AlexNet, VGG, MobileNetV2, ResNet and DenseNet, and timm's for ResNet-D
and v2.
Networks that neither has (alexnet_2012, alexnet_bn, CIFAR's) are named in the same manner.
"""

import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxcls.errors import UserError
from flaxcls.models.alexnet import AlexNet
from flaxcls.models.densenet import DenseNet
from flaxcls.models.init import abstract_variables
from flaxcls.models.mobilenet import MobileNetV2
from flaxcls.models.resnet import PreActResNet
from flaxcls.models.vgg import VGG

_LEAVES = {
    'kernel': 'weight',
    'scale': 'weight',
    'bias': 'bias',
    'mean': 'running_mean',
    'var': 'running_var',
}


class TensorSpec(NamedTuple):
    """An array of a network and its place in a state dict.

    Attributes:
      path: ('params' or 'batch_stats', ...) of the variables.
      key: of the state dict.
      shape: in the state dict.
      to_torch, from_torch: change the order of the axes.
    """

    path: tuple[str, ...]
    key: str
    shape: tuple[int, ...]
    to_torch: Callable[[np.ndarray], np.ndarray]
    from_torch: Callable[[np.ndarray], np.ndarray]


def torch_layout(model: nn.Module, image_size: int) -> list[TensorSpec]:
    """Returns an entry for each array of `model`, sorted by its path.

    Raises:
      UserError: PyTorch's names would give two arrays one name.
    """
    variables = flatten_dict(abstract_variables(model, image_size))
    rename = _make_rename(model)
    entries = []
    for path, leaf in sorted(variables.items()):
        layer = '/'.join(path[1:-1])
        to_torch, from_torch = _axes(layer, path[-1], leaf.shape, model)
        shape = to_torch(np.broadcast_to(np.float32(0), leaf.shape)).shape
        key = f'{rename(layer)}.{_LEAVES[path[-1]]}'
        entries.append(TensorSpec(path, key, shape, to_torch, from_torch))
    keys = sorted(entry.key for entry in entries)
    for key, following in itertools.pairwise(keys):
        if key == following:
            raise UserError(
                f"PyTorch's names of this network have {key} twice; choose other config.model "
                'options, such as more blocks.'
            )
    return entries


def to_state_dict(variables: Mapping[str, Any], entries: list[TensorSpec]) -> dict[str, np.ndarray]:
    """Returns the state dict of {'params': ..., 'batch_stats': ...}, float32."""
    arrays = flatten_dict(dict(variables))
    return {
        entry.key: np.ascontiguousarray(entry.to_torch(np.asarray(arrays[entry.path])))
        for entry in entries
    }


def from_state_dict(tensors: Mapping[str, np.ndarray], entries: list[TensorSpec]) -> dict[str, Any]:
    """Returns {'params': ..., 'batch_stats': ...} of a state dict that has every entry."""
    arrays = {entry.path: entry.from_torch(tensors[entry.key]) for entry in entries}
    return {'params': {}, 'batch_stats': {}} | unflatten_dict(arrays)


def _axes(layer: str, leaf: str, shape: tuple[int, ...], model: nn.Module):
    if leaf != 'kernel':
        return (lambda x: x), (lambda x: x)
    if len(shape) == 4:  # [height, width, in, out] and [out, in, height, width].
        return (lambda x: x.transpose(3, 2, 0, 1)), (lambda x: x.transpose(2, 3, 1, 0))
    if layer == 'head/dense' and isinstance(model, PreActResNet):
        # timm classifies with a 1x1 convolution.
        return (lambda x: x.T[:, :, None, None]), (lambda x: x[:, :, 0, 0].T)
    side = {(AlexNet, 'fc6'): 6, (VGG, 'fc1'): 7}.get((type(model), layer))
    if side is None:
        return (lambda x: x.T), (lambda x: x.T)
    # Maps are flattened as [height, width, channels] here, and channels first in torch.
    channels, features = shape[0] // side**2, shape[1]

    def to_torch(x):
        return x.reshape(side, side, channels, features).transpose(3, 2, 0, 1).reshape(features, -1)

    def from_torch(x):
        maps = x.reshape(features, channels, side, side)
        return maps.transpose(2, 3, 1, 0).reshape(-1, features)

    return to_torch, from_torch


def _make_rename(model: nn.Module) -> Callable[[str], str]:
    """Returns path of a layer, such as stage1_block1/conv1 -> its name in the state dict."""
    if isinstance(model, AlexNet):
        layers = _alexnet_names(model)
    elif isinstance(model, VGG):
        layers = _vgg_names(model)
    elif isinstance(model, MobileNetV2):
        layers = _mobilenet_names(model)
    elif isinstance(model, DenseNet):
        layers = {
            'stem': 'features.conv0',
            'bn_stem': 'features.norm0',
            'bn_final': f'features.norm{len(model.block_sizes) + 1}',
            'head/dense': 'classifier',
        }
        if model.stem == 'deep':  # As timm has them.
            layers |= {'stem1': 'features.conv0', 'stem2': 'features.conv1'}
            layers |= {'bn_stem1': 'features.norm0', 'bn_stem2': 'features.norm1'}
            layers |= {'stem': 'features.conv2', 'bn_stem': 'features.norm2'}
    elif isinstance(model, PreActResNet):
        layers = {'stem': 'stem.conv', 'bn_final': 'norm', 'head/dense': 'head.fc'}
        if model.stem == 'deep':
            layers |= {'stem1': 'stem.conv1', 'stem2': 'stem.conv2', 'stem': 'stem.conv3'}
            layers |= {'bn_stem1': 'stem.norm1', 'bn_stem2': 'stem.norm2'}
    else:
        layers = {'stem': 'conv1', 'bn_stem': 'bn1', 'head/dense': 'fc'}
        if model.stem == 'deep':
            layers |= {'stem1': 'conv1.0', 'stem2': 'conv1.3', 'stem': 'conv1.6'}
            layers |= {'bn_stem1': 'conv1.1', 'bn_stem2': 'conv1.4'}
    return lambda layer: layers.get(layer) or _rename_block(layer, model)


def _alexnet_names(model: AlexNet) -> dict[str, str]:
    if model.use_batch_norm:  # torch's indices leave no room for BatchNorm.
        names = {
            f'{kind}{i}': f'features.{kind}{i}' for i in range(1, 6) for kind in ('conv', 'bn')
        }
    else:
        names = {f'conv{i + 1}': f'features.{at}' for i, at in enumerate((0, 3, 6, 8, 10))}
    return names | {'fc6': 'classifier.1', 'fc7': 'classifier.4', 'head': 'classifier.6'}


def _vgg_names(model: VGG) -> dict[str, str]:
    names, at = {}, 0
    for stage, size in enumerate(model.stage_sizes, start=1):
        for index in range(1, size + 1):
            names[f'conv{stage}_{index}'] = f'features.{at}'
            names[f'bn{stage}_{index}'] = f'features.{at + 1}'
            at += 3 if model.use_batch_norm else 2
        at += 1  # The pooling.
    return names | {'fc1': 'classifier.0', 'fc2': 'classifier.3', 'head': 'classifier.6'}


def _mobilenet_names(model: MobileNetV2) -> dict[str, str]:
    names = {'stem': 'features.0.0', 'bn_stem': 'features.0.1', 'head/dense': 'classifier.1'}
    if model.stem == 'deep':  # Named as ResNet-D's is.
        names |= {'stem1': 'features.0.0.0', 'stem2': 'features.0.0.3', 'stem': 'features.0.0.6'}
        names |= {'bn_stem1': 'features.0.0.1', 'bn_stem2': 'features.0.0.4'}
    at = 1
    for stage, size in enumerate(model.stage_sizes, start=1):
        # A convolution is one entry with its BatchNorm and ReLU6, but the last of a block, which
        # has no ReLU6.
        layers = ('depthwise', 'project') if stage == 1 else ('expand', 'depthwise', 'project')
        for index in range(1, size + 1):
            block, there = f'stage{stage}_block{index}', f'features.{at}.conv'
            for place, layer in enumerate(layers):
                pair = (f'{place}.0', f'{place}.1')
                if layer == 'project':
                    pair = (f'{place}', f'{place + 1}')
                names[f'{block}/{layer}'], names[f'{block}/bn_{layer}'] = (
                    f'{there}.{own}' for own in pair
                )
            at += 1
    return names | {'last': f'features.{at}.0', 'bn_last': f'features.{at}.1'}


def _rename_block(layer: str, model: nn.Module) -> str:
    block, _, name = layer.partition('/')
    name = name.replace('bn', 'norm') if isinstance(model, DenseNet | PreActResNet) else name
    if transition := re.fullmatch(r'transition(\d+)', block):
        return f'features.transition{transition[1]}.{name}'
    first, second = map(int, re.fullmatch(r'[a-z]+(\d+)_[a-z]+(\d+)', block).groups())
    if isinstance(model, DenseNet):
        return f'features.denseblock{first}.denselayer{second}.{name}'
    if isinstance(model, PreActResNet):
        name = {'conv_proj': 'downsample.conv'}.get(name, name)
        return f'stages.{first - 1}.blocks.{second - 1}.{name}'
    after = 1 if model.shortcut == 'D' else 0  # The average pooling comes first.
    name = {'conv_proj': f'downsample.{after}', 'bn_proj': f'downsample.{after + 1}'}.get(
        name, name
    )
    return f'layer{first}.{second - 1}.{name}'
