"""Every option of a run: one row each, which is all that there is to say of it.

Adding an option is a row here, and reading it where it has its effect. See docs/how_to/extend.md.
"""

import itertools
from collections.abc import Collection

from flaxcls.config.option import Option

_SHARE = {'at_least': 0, 'below': 1}  # Of probabilities and shares that may be none, but not all.
_POSITIVE_INTS = (
    'positive whole numbers',
    lambda x: len(x) > 0 and all(isinstance(v, int) and v > 0 for v in x),
)
_ADAM_LIKE = ('lamb', 'adamw', 'muon')

# What the sections of the config are for.
SECTIONS = {
    'model': 'The network; what is None is as in its paper.',
    'batch_norm': 'BatchNorm; its groups belong to the experiment.',
    'data': 'Where images come from, and how they are read.',
    'augment': 'How training images are changed, on the device.',
    'optimizer': 'How gradients become updates.',
    'ema': 'Averaged weights.',
    'parallel': 'How a step is computed; its result stays the same.',
    'schedule': 'The learning rate over the run.',
}

# fmt: off
_ROWS = (
    Option('seed', 0, at_least=0, at_most=2**32 - 1, varies=True, selects_images=True,
           help='Initial weights, order of examples and every random draw follow from it.'),
    Option('batch_size', 64, at_least=1, same_logits=True,
           help='Examples per step over all devices and processes.'),
    Option('num_epochs', 20, at_least=1, help='Passes over the training set.'),
    Option('loss', 'softmax', choices=('softmax', 'sigmoid'),
           help='Of training: cross-entropy; sigmoid: binary, mean over the classes.'),
    Option('label_smoothing', 0.0, **_SHARE,
           help='Share of each label spread evenly over all classes, in training.'),
    Option('top_k', 5, at_least=1, neutral=True,
           help='Also report how often the label is among the k best; capped by the classes.'),
    Option('log_every_steps', 50, at_least=1, neutral=True,
           help='Steps between two records of the training metrics.'),
    Option('eval_every_epochs', 1, at_least=1, neutral=True,
           help='Epochs between two evaluations; the last epoch always has one.'),
    Option('checkpoint_every_steps', 1000, at_least=1, neutral=True,
           help='Steps between two saves, beside those at evaluations.'),
    Option('init_from', str, help='Workdir whose newest weights are the initial ones.'),
    Option('freeze', '',
           help='Layers left as they are: comma-separated patterns such as stem,stage[12]*.'),
    Option('trackers', '', neutral=True,
           help='Also record with, comma-separated: tensorboard (extra [tensorboard]).'),
    Option('extensions', '',
           help='Python files or modules, comma-separated, that add to flaxcls.'),

    Option('model.name', 'resnet20', help='A row of flaxcls.MODELS.'),
    Option('model.num_classes', int, at_least=2, varies=True,
           help='None: as many as the data has.'),
    Option('model.dtype', 'float32', choices=('float32', 'bfloat16'), varies=True,
           help='Of the computation; weights, statistics, loss stay float32.'),
    Option('model.dropout_rate', float, **_SHARE, attribute=True,
           help='Share of activations set to zero in training.'),
    Option('model.width_multiplier', float, above=0, below=100, attribute=True,
           help='AlexNet, VGG, ResNet, MobileNetV2: scales the channels.'),
    Option('model.stage_sizes', tuple, must_be=_POSITIVE_INTS, attribute=True,
           help='ResNet, MobileNetV2: blocks per stage; VGG: convolutions.'),
    Option('model.block_sizes', tuple, must_be=_POSITIVE_INTS, attribute=True,
           help='DenseNet: layers per dense block.'),
    Option('model.growth_rate', int, at_least=1, attribute=True,
           help='DenseNet: channels that each layer adds (k).'),
    Option('model.bottleneck', bool, attribute=True,
           help='DenseNet: 1x1 convolutions before the 3x3 ones.'),
    Option('model.compression', float, above=0, at_most=1, attribute=True,
           help='DenseNet: share of the channels that transitions keep.'),
    Option('model.stem', str, choices=('7x7', '3x3', 'deep', 'small'), attribute=True,
           help='ResNet, DenseNet, MobileNetV2: small is for about 32 pixels.'),
    Option('model.shortcut', str, choices=('A', 'B', 'C', 'D', 'none'), attribute=True,
           help='ResNet: A, B, C, D (maps of another shape), none.'),
    Option('model.zero_init_residual', bool, attribute=True,
           help='ResNet: blocks begin as their shortcuts.'),
    Option('model.stochastic_depth_rate', float, **_SHARE, attribute=True,
           help='ResNet: chance to skip the last block.'),
    Option('model.lrn', str, choices=('none', 'paper', 'caffe'), attribute=True,
           help='AlexNet: none, paper or caffe (alpha divided by n).'),
    Option('model.two_groups', bool, attribute=True,
           help='AlexNet: convolutions 2, 4 and 5 in two groups.'),
    Option('model.pool_window', int, at_least=2, at_most=3, attribute=True,
           help='AlexNet: side of the pooling, of stride 2; 3 overlaps.'),
    Option('model.remat', 'none', choices=('none', 'norm', 'block'), neutral=True,
           help='norm or block: recompute these in backward, to save memory.'),
    Option('model.initializer', str, choices=('paper', 'he', 'filters'), attribute=True,
           help='AlexNet: paper, he or filters (1/sqrt(filters)).'),

    Option('batch_norm.group_size', int, at_least=1,
           help='Examples sharing statistics; None: the batch.'),
    Option('batch_norm.momentum', 0.9, **_SHARE,
           help='Share of the old running statistics kept at each step.'),
    Option('batch_norm.eps', 1e-5, above=0, help='Added to the variance.'),

    Option('data.source', 'digits', selects_images=True,
           help='Or fashion_mnist, tfds:, folder:, manifest: or synthetic:...'),
    Option('data.data_dir', str, neutral=True,
           help='Of TFDS; None: $TFDS_DATA_DIR, ~/tensorflow_datasets.'),
    Option('data.train_split', str, selects_images=True,
           help='Split or slice to train on; None: train.'),
    Option('data.val_split', str, selects_images=True,
           help='None: the first there is of validation, val, test.'),
    Option('data.val_fraction', float, above=0, below=1, selects_images=True,
           help='Held out of a folder without splits; None: 0.2.'),
    Option('data.image_size', int, at_least=1,
           help="Side in pixels; None: the model's usual size."),
    Option('data.train_image_size', int, at_least=1,
           help="Training's own, mostly smaller; None: same."),
    Option('data.eval_crop_fraction', 1.0, at_least=0.01, at_most=1,
           help='Side of the central crop / shorter side, in evaluation.'),
    Option('data.eval_crops', 'center', choices=('center', 'flip', 'ten'),
           help='center; flip: and mirrored; ten: and corners. Averaged.'),
    Option('data.mean', (0.485, 0.456, 0.406),
           must_be=('three numbers, for red, green and blue', lambda x: len(x) == 3),
           help="Subtracted from RGB in 0..1; ImageNet's."),
    Option('data.std', (0.229, 0.224, 0.225),
           must_be=('three positive numbers', lambda x: len(x) == 3 and min(x) > 0),
           help="Divides RGB once the mean is subtracted; ImageNet's."),
    Option('data.num_threads', int, at_least=1, neutral=True,
           help='Threads that decode images; None: one per core.'),
    Option('data.on_error', 'stop', choices=('stop', 'skip'), selects_images=True,
           help='Or skip: leave out files that cannot be read, with a note.'),
    Option('data.cache', 'none', choices=('none', 'memory', 'disk'), same_logits=True,
           help='memory or disk: keep images decoded and reduced, for small sets.'),

    Option('augment.crop', 'none', choices=('none', 'pad', 'random_resized', 'random'),
           help='none, pad (zero-pad and crop), random_resized or random.'),
    Option('augment.pad', 4, at_least=1,
           help='Pixels on each side.'),
    Option('augment.min_area', 0.08, above=0, at_most=1,
           help='Smallest share of the image that a crop takes.'),
    Option('augment.crop_on', 'host', choices=('host', 'device'),
           only_with={'augment.crop': 'random_resized'},
           help='host as files are decoded; device if small.'),
    Option('augment.flip', False, help='Mirror left-right with probability 1/2.'),
    Option('augment.color_jitter', (),
           must_be=('four numbers from 0 on, the last up to 0.5, or ()',
                    lambda x: not x or (len(x) == 4 and min(x) >= 0 and x[3] <= 0.5)),
           help='Strengths of brightness, contrast, saturation, hue.'),
    Option('augment.lighting', 0.0, at_least=0,
           help="Deviation of AlexNet's PCA colour shifts, 0.1 in the paper."),
    Option('augment.policy', 'none', choices=('none', 'randaugment', 'trivialaugment'),
           help='none, randaugment or trivialaugment (Wide).'),
    Option('augment.randaugment_layers', 2, at_least=1,
           help='Operations applied to each image.'),
    Option('augment.randaugment_magnitude', 9.0, at_least=0, at_most=30,
           help='Strength of these operations.'),
    Option('augment.erase', 0.0, at_least=0, at_most=1,
           help='Probability that a rectangle is erased.'),
    Option('augment.cutout', 0, at_least=0, help='Side in pixels of a square that is erased.'),
    Option('augment.mixup', 0.0, at_least=0,
           help='Alpha of the Beta distribution, such as 0.2.'),
    Option('augment.cutmix', 0.0, at_least=0, help='Alpha of the Beta distribution, such as 1.'),
    Option('augment.repeats', 1, at_least=1,
           help='Times that a batch shows each of its images, augmented anew.'),

    Option('optimizer.name', 'sgd', choices=('sgd', 'lars', 'lamb', 'adamw', 'lion', 'muon'),
           help='sgd, lars, lamb, adamw, lion or muon.'),
    Option('optimizer.learning_rate', 0.1, above=0,
           help='Peak, for a batch of base_batch_size examples.'),
    Option('optimizer.base_batch_size', 0, at_least=0,
           help='Peak scales with batch_size / this; 0: it does not.'),
    Option('optimizer.momentum', 0.9, **_SHARE,
           help='Share of the last update that is kept.'),
    Option('optimizer.nesterov', True,
           help='Momentum as Nesterov has it.'),
    Option('optimizer.beta1', float, **_SHARE,
           only_with={'optimizer.name': ('lion', *_ADAM_LIKE)}, help='None: as in optax.'),
    Option('optimizer.beta2', float, **_SHARE,
           only_with={'optimizer.name': ('lion', *_ADAM_LIKE)}, help='None: as in optax.'),
    Option('optimizer.eps', float, above=0,
           only_with={'optimizer.name': _ADAM_LIKE}, help='None: as in optax.'),
    Option('optimizer.trust_coefficient', float, above=0,
           only_with={'optimizer.name': 'lars'}, help='Layer-wise rate; None: 0.001.'),
    Option('optimizer.weight_decay', 1e-4, at_least=0,
           help='With sgd and lars added to the gradient, with the others decoupled.'),
    Option('optimizer.decay_all', False,
           help="Decay BatchNorm's parameters and the biases as well."),
    Option('optimizer.rules', '',
           help='Multipliers for layers, as in head:lr=10;stem*:lr=0.1,decay=0.'),
    Option('optimizer.clip_norm', 0.0, at_least=0,
           help='Longer gradients are cut to this global norm; 0: none is.'),

    Option('ema.decay', 0.0, **_SHARE,
           help='Of a moving average of the weights that is evaluated: 0.999. 0: none.'),

    Option('parallel.mode', 'jit', choices=('jit', 'pmap'), neutral=True,
           help='jit (shard_map over a mesh) or pmap.'),
    Option('parallel.accumulation_steps', 1, at_least=1, neutral=True,
           help='Microbatches of a batch, one after another: less memory.'),

    Option('schedule.name', 'cosine',
           choices=('cosine', 'step', 'polynomial', 'one_cycle', 'constant'),
           help='cosine, step, polynomial, one_cycle or constant.'),
    Option('schedule.warmup_epochs', 0.0, at_least=0,
           help='Linear rise to the peak; the first step is above zero.'),
    Option('schedule.warmup_start', float, above=0, at_most=1,
           help='Share of the peak at the first step.'),
    Option('schedule.milestones', (), only_with={'schedule.name': 'step'},
           must_be=('in rising order', lambda x: list(x) == sorted(set(x))),
           help='Epochs at which the rate is multiplied by decay_factor.'),
    Option('schedule.decay_factor', 0.1, above=0, below=1,
           help='What the rate is multiplied by at each milestone.'),
    Option('schedule.final', 0.0, at_least=0, at_most=1,
           only_with={'schedule.name': ('cosine', 'polynomial', 'one_cycle')},
           help='Share of the peak at the end.'),
    Option('schedule.power', 1.0, above=0, only_with={'schedule.name': 'polynomial'},
           help='Of the falling share of the run.'),
)
# fmt: on

OPTIONS: dict[str, Option] = {row.key: row for row in _ROWS}  # And those of loaded extensions.


def options_with(origins: Collection[str]) -> dict[str, Option]:
    """Returns the options of flaxcls and of these extensions, by key."""
    return {key: row for key, row in OPTIONS.items() if row.origin in {'', *origins}}


def keys_of(*columns: str) -> frozenset[str]:
    """Returns the keys of the options for which one of the columns is true, such as 'neutral'."""
    pairs = itertools.product(OPTIONS.values(), columns)
    return frozenset(row.key for row, column in pairs if getattr(row, column))


def describe_options() -> str:
    """Returns a line for each option: key, default and meaning."""
    return '\n'.join(
        f'  --config.{row.key}={row.default}'.ljust(44) + f'  {row.help}'
        for row in OPTIONS.values()
    )
