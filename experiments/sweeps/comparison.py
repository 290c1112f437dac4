"""A linear classifier, AlexNet, VGG, ResNet, DenseNet and MobileNetV2, tuned and trained alike.

Claims, on ImageNet: residual networks are more accurate than VGG's, with fewer multiply-adds
(arXiv:1512.03385, table 3); dense ones more than residual ones, with as many (arXiv:1608.06993,
figure 3); and MobileNetV2 is accurate with the few that a phone has time for (arXiv:1801.04381,
table 4). All but the linear classifier spend about eight million multiply-adds on an image here:

  linear                         7,850 parameters, 0.008 million multiply-adds
  AlexNet, BatchNorm, x 0.27  4,212,492, 8.3
  VGG, 4 layers, x 0.25       4,333,002, 8.2
  ResNet-20, x 0.5               68,050, 7.9
  DenseNet-BC-28, k = 6          26,800, 8.5
  MobileNetV2, x 0.25           250,922, 7.9

They see the same 4,000 images of Fashion-MNIST, 28 pixels wide, shifted by up to 2 pixels and
mirrored, three times each. Each is trained at the same three learning rates, and the rate counts
whose accuracy is the highest on 3,000 other images of the training set. So it is little training
on few images that is compared. AlexNet, whose strides need 63 pixels, gets the 28 enlarged to 70.

  flaxcls sweep --sweep=comparison

54 runs of up to two minutes, two at a time on two cores (--jobs=2). Of them
`python -m benchmarks.comparison` takes each network at its rate, and measures the accuracy on the
10,000 test images, sizes and times. Not run yet.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import flaxcls
from flaxcls.models.layers import Head, Intermediate
from flaxcls.sweeping.definition import Sweep, values


@flaxcls.MODELS.register('linear', image_size=28, num_classes=10)
class Linear(nn.Module):
    """A weight for each pixel and class; of grey images, whose three channels are equal, one."""

    num_classes: int = 10
    norm: Any = None  # It has no BatchNorm.
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, example_keys: jax.Array | None = None
    ) -> jax.Array:
        """Returns float32 logits [B, num_classes] of normalised images [B, H, W, 3]."""
        x = Intermediate(name='feature_map')(images[..., :1])
        x = Intermediate(name='features')(x.reshape(x.shape[0], -1))
        return Head(self.num_classes, name='head')(x)


RECIPE = {
    'data.train_split': 'train[:4000]',
    'data.val_split': 'train[57000:]',
    'batch_size': 32,
    'num_epochs': 3,
    'eval_every_epochs': 3,
    'optimizer.weight_decay': 5e-4,
    'schedule.warmup_epochs': 0.5,
}
_SHIFT = 2  # Pixels of 28.
_ENLARGED = {'data.image_size': 70, 'augment.pad': _SHIFT * 70 // 28}


def get_sweep():
    return Sweep(
        config='fashion_mnist_resnet20',
        overrides=RECIPE,
        axes={
            'network': {
                'linear': {'extensions': __file__, 'model.name': 'linear'},
                'AlexNet': _ENLARGED | {'model.name': 'alexnet_bn', 'model.width_multiplier': 0.27},
                'VGG': {
                    'model.name': 'vgg16_bn',
                    'model.stage_sizes': (1, 1, 2),
                    'model.width_multiplier': 0.25,
                },
                'ResNet': {'model.name': 'resnet20', 'model.width_multiplier': 0.5},
                'DenseNet': {
                    'model.name': 'densenet_bc_100_12',
                    'model.block_sizes': (4, 4, 4),
                    'model.growth_rate': 6,
                },
                'MobileNetV2': {
                    'model.name': 'mobilenet_v2',
                    'model.stem': 'small',
                    'model.width_multiplier': 0.25,
                },
            },
            'rate': values('optimizer.learning_rate', [0.01, 0.03, 0.1]),
        },
        baseline={'network': 'linear'},  # At the same rate.
        seeds=3,
    )
