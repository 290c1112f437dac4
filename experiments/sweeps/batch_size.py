"""The size of the batch, with the learning rate as it is and in proportion.

Claims (arXiv:1706.02677, section 2.1 and figure 1, on ImageNet): in as many epochs, a batch k times
as large reaches the same accuracy if the learning rate is k times as large as well, and is warmed
up, up to some size; with the rate as it is, it does not.

  flaxcls sweep --sweep=batch_size

ResNet-20, half as wide, on 5,000 images of Fashion-MNIST at half their size; the rate is 0.1 for a
batch of 64. 24 runs. Not run yet; --dry_run estimates what they cost.
"""

from flaxcls.sweeping.definition import Sweep, values


def get_sweep():
    return Sweep(
        config='fashion_mnist_resnet20',
        overrides={
            'model.width_multiplier': 0.5,
            'data.image_size': 14,
            'data.train_split': 'train[:5000]',
            'augment.pad': 1,
            'num_epochs': 15,
            'eval_every_epochs': 15,
            'schedule.warmup_epochs': 2,
        },
        axes={
            'batch size': values('batch_size', [16, 64, 256, 1024]),
            'rate': {
                'as it is': {'optimizer.base_batch_size': 0},
                'in proportion': {'optimizer.base_batch_size': 64},
            },
        },
        baseline={'batch size': '64'},  # At the same rule.
        seeds=3,
    )
