"""The CIFAR networks that torchvision lacks, in PyTorch, with the parameters of flaxcls's."""

import torch
from torch import nn
from torch.nn import functional


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions; the shortcut subsamples and pads with zero channels (option A)."""

    def __init__(self, channels: int, features: int, stride: int):
        super().__init__()
        self.stride, self.padding = stride, features - channels
        self.conv1 = nn.Conv2d(channels, features, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.padding:
            x = functional.pad(x, (0, 0, 0, 0, 0, self.padding))
        return functional.relu(x + y, inplace=True)


def resnet(depth: int) -> nn.Module:
    """Returns the ResNet with 6n + 2 = `depth` layers (arXiv:1512.03385, section 4.2)."""
    blocks, channels = (depth - 2) // 6, 16
    layers = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
    for features in (16, 32, 64):
        for _ in range(blocks):
            layers.append(ResidualBlock(channels, features, 1 if channels == features else 2))
            channels = features
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class DenseLayer(nn.Module):
    """BatchNorm, ReLU, 1x1 to 4k channels, BatchNorm, ReLU, 3x3 to k; joined to what came in."""

    def __init__(self, channels: int, growth_rate: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 4 * growth_rate, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth_rate)
        self.conv2 = nn.Conv2d(4 * growth_rate, growth_rate, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(functional.relu(self.bn1(x), inplace=True))
        y = self.conv2(functional.relu(self.bn2(y), inplace=True))
        return torch.cat([x, y], 1)


def densenet_bc(depth: int, growth_rate: int) -> nn.Module:
    """Returns the DenseNet-BC with `depth` layers (arXiv:1608.06993, section 3)."""
    channels = 2 * growth_rate
    layers = [nn.Conv2d(3, channels, 3, padding=1, bias=False)]
    for block in range(3):
        if block:
            layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
            layers += [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
            channels //= 2
        for _ in range((depth - 4) // 6):
            layers.append(DenseLayer(channels, growth_rate))
            channels += growth_rate
    layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, 10))


NETWORKS = {
    'resnet20': lambda: resnet(20),
    'densenet_bc_100_12': lambda: densenet_bc(100, 12),
}
