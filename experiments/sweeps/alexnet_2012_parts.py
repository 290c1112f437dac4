"""What each part of the AlexNet of 2012 contributes: taken away in turn, on Fashion-MNIST.

Claims (Krizhevsky et al., NIPS 2012, on ImageNet): local response normalisation lowers the top-1
error by 1.4 points (section 3.3), overlapping pooling by 0.4 (section 3.4); without crops and flips
the network overfits (section 4.1), and so it does without dropout (section 4.2); weight decay
lowers the training error too (section 5). All parts of the recipe stay but the one that is named.

  flaxcls sweep --sweep=alexnet_2012_parts

An eighth as wide as the paper's, on 5,000 of the 60,000 training images, so that there is
something to overfit to; the accuracy is of all 10,000 test images. PCA colour (section 4.1) has no
effect that could be seen on grey images, and is not among the parts.

36 runs of about a minute, two at a time on two cores. Not run yet.
"""

from flaxcls.sweeping.definition import Sweep

# The weights' deviation of 0.01 (section 5) is for the paper's width: here its runs never begin to
# learn, see the sweep `initializers`.
RECIPE = {
    'model.name': 'alexnet_2012',
    'model.width_multiplier': 0.125,
    'model.initializer': 'he',
    'data.train_split': 'train[:5000]',
    'data.image_size': 67,  # The smallest that the strides take.
    'data.eval_crop_fraction': 67 / 76,
    'data.eval_crops': 'ten',
    'augment.crop': 'random',
    'augment.flip': True,
    'batch_size': 128,
    'num_epochs': 20,
    'eval_every_epochs': 20,
    'optimizer.learning_rate': 0.01,
    'optimizer.momentum': 0.9,
    'optimizer.nesterov': False,
    'optimizer.weight_decay': 5e-4,
    'schedule.name': 'step',
    'schedule.warmup_epochs': 0.0,
    'schedule.milestones': (12, 17),
}


def get_sweep():
    return Sweep(
        config='fashion_mnist_alexnet',
        overrides=RECIPE,
        axes={
            'part taken away': {
                'none': {},
                'LRN': {'model.lrn': 'none'},
                'two groups': {'model.two_groups': False},
                'overlap of the pooling': {'model.pool_window': 2},
                'dropout': {'model.dropout_rate': 0.0},
                'crops': {'augment.crop': 'none'},
                'flips': {'augment.flip': False},
                'ten crops in evaluation': {'data.eval_crops': 'center'},
                'weight decay': {'optimizer.weight_decay': 0.0},
                'momentum': {'optimizer.momentum': 0.0},
                'momentum, at ten times the rate': {
                    'optimizer.momentum': 0.0,
                    'optimizer.learning_rate': 0.1,
                },
                'cuts of the rate': {'schedule.name': 'constant', 'schedule.milestones': ()},
            }
        },
        seeds=3,
    )
