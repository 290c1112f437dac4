"""BatchNorm and ReLU after the convolutions or before them, in 20 and in 110 layers.

Claims (arXiv:1603.05027, section 4 and table 3, on CIFAR-10): before them ("pre-activation") a
residual network is easier to train, which shows the more the deeper it is: 6.61 to 6.37 % error
with 110 layers, 7.61 to 4.92 % with 1001. Section 4.2: the loss of the deep one falls slowly at
first with the order of 2015, and fast with pre-activation.

  flaxcls sweep --sweep=preactivation

Half as wide as the paper's, on 5,000 images of Fashion-MNIST at half their size. 12 runs. Not run
yet; --dry_run estimates what they cost.
"""

from flaxcls.sweeping.definition import Sweep, zipped


def get_sweep():
    return Sweep(
        config='fashion_mnist_resnet20',
        overrides={
            'model.stem': 'small',
            'model.shortcut': 'A',
            'model.width_multiplier': 0.125,
            'data.image_size': 14,
            'data.train_split': 'train[:5000]',
            'augment.pad': 1,
            'num_epochs': 10,
            'eval_every_epochs': 10,
        },
        axes={
            'depth': zipped(['20', '110'], {'model.stage_sizes': [(3, 3, 3), (18, 18, 18)]}),
            'activation': {
                'after': {'model.name': 'resnet18'},
                'before': {'model.name': 'resnet18_v2'},
            },
        },
        baseline={'activation': 'after'},  # Of the same depth.
        seeds=3,
    )
