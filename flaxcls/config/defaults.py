"""Every option of a run, with its default."""

import functools
import inspect
import re
import types
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def default_config() -> ConfigDict:
    """Returns the locked config that holds every option; experiments change values, not keys.

    An option whose value is None is filled in, or left to the model's paper, as its comment says.
    """
    config = ConfigDict()
    config.seed = 0  # Initial weights, order of examples and every random draw follow from it.
    config.batch_size = 64  # Examples per step over all devices and processes.
    config.num_epochs = 20  # Passes over the training set.
    config.loss = 'softmax'  # Of training: cross-entropy; sigmoid: binary, mean over the classes.
    config.label_smoothing = 0.0  # Share of each label spread evenly over all classes, in training.
    config.top_k = 5  # Also report how often the label is among the k best; capped by the classes.
    config.log_every_steps = 50  # Steps between two records of the training metrics.
    config.eval_every_epochs = 1  # Epochs between two evaluations; the last epoch always has one.
    config.checkpoint_every_steps = 1000  # Steps between those beside evaluations, which save too.
    config.init_from = placeholder(str)  # Workdir whose newest weights are the initial ones.
    config.freeze = ''  # Layers left as they are: comma-separated patterns such as stem,stage[12]*.
    config.tensorboard = False  # Also write TensorBoard events (extra [tensorboard]).

    config.model = ConfigDict()  # The network; what is None is as in its paper.
    config.model.name = 'resnet20'  # A row of flaxcls.models.MODELS.
    config.model.num_classes = placeholder(int)  # None: as many as the data has.
    config.model.dtype = 'float32'  # Of the computation; weights, statistics, loss stay float32.
    config.model.dropout_rate = placeholder(float)  # Share of activations set to zero in training.
    config.model.width_multiplier = placeholder(float)  # AlexNet, ResNet: scales the channels.
    config.model.stage_sizes = placeholder(tuple)  # ResNet: residual blocks per stage.
    config.model.block_sizes = placeholder(tuple)  # DenseNet: layers per dense block.
    config.model.growth_rate = placeholder(int)  # DenseNet: channels that each layer adds (k).
    config.model.bottleneck = placeholder(bool)  # DenseNet: 1x1 convolutions before the 3x3 ones.
    config.model.compression = placeholder(float)  # DenseNet: channels that transitions keep.
    config.model.shortcut = placeholder(str)  # ResNet: A, B, C, D (maps of another shape), none.
    config.model.zero_init_residual = placeholder(bool)  # ResNet: blocks begin as their shortcuts.
    config.model.stochastic_depth_rate = placeholder(float)  # Chance to skip the last block.
    config.model.lrn = placeholder(str)  # AlexNet: none, paper or caffe (alpha divided by n).
    config.model.remat = 'none'  # norm or block: recompute these in backward, to save memory.
    config.model.initializer = placeholder(str)  # AlexNet: paper, he or filters (1/sqrt(filters)).

    config.batch_norm = ConfigDict()  # BatchNorm; its groups belong to the experiment.
    config.batch_norm.group_size = placeholder(int)  # Examples sharing statistics; None: the batch.
    config.batch_norm.momentum = 0.9  # Share of the old running statistics kept at each step.
    config.batch_norm.eps = 1e-5  # Added to the variance.

    config.data = ConfigDict()  # Where images come from, and how they are read.
    config.data.source = 'digits'  # Or fashion_mnist, tfds:, folder:, manifest: or synthetic:...
    config.data.data_dir = placeholder(str)  # Of TFDS; None: $TFDS_DATA_DIR, ~/tensorflow_datasets.
    config.data.train_split = placeholder(str)  # Split or slice to train on; None: train.
    config.data.val_split = placeholder(str)  # None: the first there is of validation, val, test.
    config.data.val_fraction = placeholder(float)  # Held out of a folder without splits; None: 0.2.
    config.data.image_size = placeholder(int)  # Side in pixels; None: the model's usual size.
    config.data.train_image_size = placeholder(int)  # Training's own, mostly smaller; None: same.
    config.data.eval_crop_fraction = 1.0  # Side of the central crop / shorter side, in evaluation.
    config.data.eval_crops = 'center'  # center; flip: and mirrored; ten: and corners. Averaged.
    config.data.mean = (0.485, 0.456, 0.406)  # Subtracted from RGB in 0..1; ImageNet's.
    config.data.std = (0.229, 0.224, 0.225)  # Divides RGB once the mean is subtracted; ImageNet's.
    config.data.num_threads = placeholder(int)  # Threads that decode images; None: one per core.
    config.data.on_error = 'stop'  # Or skip: leave out files that cannot be read, with a note.
    config.data.cache = 'none'  # memory or disk: keep images decoded and reduced, for small sets.

    config.augment = ConfigDict()  # How training images are changed, on the device.
    config.augment.crop = 'none'  # none, pad (zero-pad and crop), random_resized or random.
    config.augment.pad = 4  # Pixels on each side for crop=pad.
    config.augment.min_area = 0.08  # Smallest share of the image that crop=random_resized takes.
    config.augment.crop_on = 'host'  # random_resized: host as files are decoded; device if small.
    config.augment.flip = False  # Mirror left-right with probability 1/2.
    config.augment.color_jitter = ()  # Strengths of brightness, contrast, saturation, hue.
    config.augment.lighting = 0.0  # Deviation of AlexNet's PCA colour shifts, 0.1 in the paper.
    config.augment.policy = 'none'  # none, randaugment or trivialaugment (Wide).
    config.augment.randaugment_layers = 2  # Operations that randaugment applies to each image.
    config.augment.randaugment_magnitude = 9.0  # Strength of these operations, 0 to 30.
    config.augment.erase = 0.0  # Probability that a rectangle is erased.
    config.augment.cutout = 0  # Side in pixels of a square that is erased.
    config.augment.mixup = 0.0  # Alpha of the Beta distribution, such as 0.2.
    config.augment.cutmix = 0.0  # Alpha of the Beta distribution, such as 1.
    config.augment.repeats = 1  # Times that a batch shows each of its images, augmented anew.

    config.optimizer = ConfigDict()  # How gradients become updates.
    config.optimizer.name = 'sgd'  # sgd, lars, lamb, adamw, lion or muon.
    config.optimizer.learning_rate = 0.1  # Peak, for a batch of base_batch_size examples.
    config.optimizer.base_batch_size = 0  # Peak scales with batch_size / this; 0: it does not.
    config.optimizer.momentum = 0.9  # sgd, lars, muon: share of the last update that is kept.
    config.optimizer.nesterov = True  # sgd, lars, muon: momentum as Nesterov has it.
    config.optimizer.beta1 = placeholder(float)  # adamw, lamb, lion, muon; None: as in optax.
    config.optimizer.beta2 = placeholder(float)  # adamw, lamb, lion, muon; None: as in optax.
    config.optimizer.eps = placeholder(float)  # adamw, lamb, muon; None: as in optax.
    config.optimizer.trust_coefficient = placeholder(float)  # lars: layer-wise rate; None: 0.001.
    config.optimizer.weight_decay = 1e-4  # sgd, lars: added to the gradient; others: decoupled.
    config.optimizer.decay_all = False  # Decay BatchNorm's parameters and the biases as well.
    config.optimizer.rules = ''  # Multipliers for layers, as in head:lr=10;stem*:lr=0.1,decay=0.
    config.optimizer.clip_norm = 0.0  # Longer gradients are cut to this global norm; 0: none is.

    config.ema = ConfigDict()  # Averaged weights.
    config.ema.decay = 0.0  # Of a moving average of the weights that is evaluated: 0.999. 0: none.

    config.parallel = ConfigDict()  # How a step is computed; its result stays the same.
    config.parallel.mode = 'jit'  # jit (shard_map over a mesh) or pmap.
    config.parallel.accumulation_steps = 1  # Parts of a batch, one after another: less memory.

    config.schedule = ConfigDict()  # The learning rate over the run.
    config.schedule.name = 'cosine'  # cosine, step, polynomial, one_cycle or constant.
    config.schedule.warmup_epochs = 0.0  # Linear rise to the peak; the first step is above zero.
    config.schedule.warmup_start = placeholder(float)  # Share of the peak at the first step.
    config.schedule.milestones = ()  # step: epochs at which the rate is multiplied by decay_factor.
    config.schedule.decay_factor = 0.1  # step: what the rate is multiplied by at each milestone.
    config.schedule.final = 0.0  # cosine, polynomial, one_cycle: share of the peak at the end.
    config.schedule.power = 1.0  # polynomial: of the falling share of the run.
    return config.lock()


# Options that a resumed run may change, since they leave the experiment's result alone.
OBSERVING_OPTIONS = frozenset(
    {'log_every_steps', 'eval_every_epochs', 'checkpoint_every_steps', 'tensorboard', 'top_k'}
    | {'data.num_threads', 'data.data_dir', 'parallel.mode', 'parallel.accumulation_steps'}
    | {'model.remat'}
)


def image_size(config: ConfigDict, *, training: bool) -> int:
    """Returns the side in pixels of the images that training, or evaluation, gives the network.

    `data.image_size` has to be filled in.
    """
    return (training and config.data.train_image_size) or config.data.image_size


def options(config: ConfigDict, prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) of every option, in the order of `default_config`."""
    for key in config:
        value = config[key]
        if isinstance(value, ConfigDict):
            yield from options(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', value


@functools.cache
def default_options() -> Mapping[str, Any]:
    """Returns dotted key -> value of every option of `default_config`, which takes long to make."""
    return types.MappingProxyType(dict(options(default_config())))


def option_comments() -> dict[str, str]:
    """Returns what `default_config` says of each option, and of each group of them."""
    source = inspect.getsource(default_config)
    return dict(re.findall(r'^    config\.([\w.]+) = [^#\n]*# (.*)$', source, re.MULTILINE))
