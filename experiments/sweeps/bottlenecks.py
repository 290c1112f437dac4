"""Basic blocks and bottlenecks at equal multiply-adds, on 5,000 images of Fashion-MNIST.

Claims (arXiv:1512.03385, section 4.1, "Deeper Bottleneck Architectures", and table 1): a bottleneck
of 1x1, 3x3 and 1x1 convolutions, four times as wide at its ends, costs what a basic block of two
3x3 convolutions costs, so that the network gets deeper for nothing. From 34 to 50 layers each block
is replaced by a bottleneck, and so it is here, with option A, which costs nothing either:

  3 blocks a stage   basic, 20 layers        68,050 parameters, 7.85 million multiply-adds an image
                     bottleneck, 29 layers   69,330; 8.10 million, 3.2 % more
  5 blocks a stage   basic, 32 layers        116,882; 13.27 million
                     bottleneck, 47 layers   116,370; 13.22 million, 0.4 % fewer

  flaxcls sweep --sweep=bottlenecks

12 runs. Not run yet; --dry_run estimates what they cost.
"""

from flaxcls.sweeping.definition import Sweep, zipped


def get_sweep():
    return Sweep(
        config='fashion_mnist_resnet20',
        overrides={
            'model.stem': 'small',
            'model.shortcut': 'A',
            'model.width_multiplier': 0.125,
            'data.train_split': 'train[:5000]',
            'num_epochs': 15,
            'eval_every_epochs': 15,
        },
        axes={
            'blocks a stage': zipped(['3', '5'], {'model.stage_sizes': [(3, 3, 3), (5, 5, 5)]}),
            'block': {
                'basic': {'model.name': 'resnet18'},
                'bottleneck': {'model.name': 'resnet50'},
            },
        },
        baseline={'block': 'basic'},  # Of as many blocks.
        seeds=3,
    )
