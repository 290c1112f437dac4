"""From a config to all that a run is made of, checked against one another before any work."""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import optax
from ml_collections import ConfigDict

from flaxcls.augment.mixup import make_mix
from flaxcls.augment.transforms import make_augment, make_normalize
from flaxcls.config import extensions
from flaxcls.config.validation import validate
from flaxcls.data import pipeline
from flaxcls.data.crops import EvalCrop, TrainCrop
from flaxcls.data.datasets import Dataset
from flaxcls.models.image_size import require_image_size
from flaxcls.models.init import Initialization
from flaxcls.models.patterns import parse_patterns
from flaxcls.models.registry import MODELS
from flaxcls.system.xla_options import compiler_options
from flaxcls.training import freezing, optimizers, parallel, steps
from flaxcls.training.dataset import count_classes, read_dataset
from flaxcls.training.from_config import (
    create_network,
    eval_images,
    optimizer_options,
    train_crop,
    tta_crops_of,
)
from flaxcls.training.init_from import take_weights
from flaxcls.training.learning_rate import LearningRate, make_learning_rate
from flaxcls.training.logging import Tracker, find_trackers
from flaxcls.training.losses import LOSSES
from flaxcls.training.state import TrainState, create_train_state


class Intervals(NamedTuple):
    """How often the loop looks up from training."""

    log_every_steps: int
    eval_every_epochs: int
    checkpoint_every_steps: int


class Setup(NamedTuple):
    """Everything that follows from a config before a weight is drawn.

    Attributes:
      model_name, dtype, remat: as in config.model.
      model: its module, whose BatchNorm has the axis over the devices.
      initialization: its initial weights, yet to be drawn.
      init_from, frozen, averages_weights: see config.init_from, config.freeze and config.ema.
      source: of the data, as in config.data.source.
      dataset: training and validation examples, and the class names.
      train_crop, eval_crop: how images are cut on the host.
      num_threads: that decode images; None: one per core.
      normalize: images in 0..255 -> what the network takes.
      layout: of a batch over the devices.
      seed: of all random draws.
      batch_size: examples of a global batch; `repeats` of them show one image.
      num_epochs, steps_per_epoch: whole batches.
      top_k: k, at most the number of classes.
      learning_rate: over the run.
      optimizer: of the parameters that are trained.
      augment: (keys, images) -> images, see `make_augment`.
      make_mix: (num_classes, axis_name) -> how examples are mixed, see `mixup.make_mix`.
      train_step, classify: of one device, see `steps`.
      intervals: how often the loop logs, evaluates and saves.
      trackers: (workdir, start_step) -> where records go besides.
    """

    model_name: str
    dtype: str
    remat: str
    model: nn.Module
    initialization: Initialization
    init_from: str | None
    frozen: tuple[str, ...]
    averages_weights: bool
    source: str
    dataset: Dataset
    train_crop: TrainCrop
    eval_crop: EvalCrop
    num_threads: int | None
    normalize: Callable[[jax.Array], jax.Array]
    layout: parallel.Layout
    seed: int
    batch_size: int
    repeats: int
    num_epochs: int
    steps_per_epoch: int
    top_k: int
    learning_rate: LearningRate
    optimizer: optax.GradientTransformation
    augment: Callable[[jax.Array, jax.Array], jax.Array]
    make_mix: Callable[..., Any]
    train_step: Callable[[TrainState, steps.Batch], tuple[TrainState, Any]]
    classify: Callable[[steps.Variables, jax.Array], jax.Array]
    intervals: Intervals
    trackers: tuple[Callable[..., Tracker], ...]

    @property
    def total_steps(self) -> int:
        return self.num_epochs * self.steps_per_epoch

    def init_state(self) -> TrainState:
        """Returns the state before the first step, on all devices.

        Raises:
          UserError: config.init_from is not a run of this network.
        """
        variables = self.initialization.draw(jax.random.key(self.seed))
        if self.init_from:
            variables = take_weights(variables, self.init_from)
        return parallel.replicate(self._state_of(variables), self.layout)

    def abstract_state(self) -> TrainState:
        """Returns the shapes, dtypes and places of the state; nothing is drawn or computed."""
        variables = {'batch_stats': {}} | self.initialization.abstract
        state = jax.eval_shape(self._state_of, variables)
        return parallel.replicated_shapes(state, self.layout)

    def make_train_step(self) -> Callable[..., Any]:
        """Returns `train_step` compiled for these devices; it donates the old state."""
        return parallel.parallelize_train_step(self.train_step, self.layout)

    def make_eval_step(self) -> Callable[..., Any]:
        """Returns `steps.make_eval_step`'s for these devices."""
        step = steps.make_eval_step(self.classify, top_k=self.top_k)
        return parallel.parallelize_eval_step(step, self.layout)

    def make_train_batches(self) -> Callable[[int], Iterator[pipeline.Batch]]:
        """Returns start_step -> this process's shares of the training batches, on the host."""
        return pipeline.make_train_batches(
            self.dataset.train,
            self.train_crop,
            batch_size=self.batch_size,
            num_epochs=self.num_epochs,
            seed=self.seed,
            repeats=self.repeats,
            microbatches=self.layout.accumulation_steps,
            num_threads=self.num_threads,
            num_classes=len(self.dataset.class_names),
            **_this_process(),
        )

    def make_eval_batches(self) -> Callable[[], Iterator[pipeline.Batch]]:
        """Returns () -> this process's shares of the evaluation batches, on the host."""
        return pipeline.make_eval_batches(
            self.dataset.val,
            self.eval_crop,
            batch_size=self.batch_size,
            num_threads=self.num_threads,
            num_classes=len(self.dataset.class_names),
            **_this_process(),
        )

    def _state_of(self, variables: dict[str, Any]) -> TrainState:
        trained, _ = freezing.split_frozen(variables['params'], self.frozen)
        return create_train_state(variables, self.optimizer, trained, ema=self.averages_weights)


def _this_process() -> dict[str, int]:
    return {'process_index': jax.process_index(), 'process_count': jax.process_count()}


def build_setup(
    config: ConfigDict,
    *,
    for_training: bool = True,
    dataset: Dataset | None = None,
    devices: Sequence[Any] | None = None,
    workdir: str | os.PathLike | None = None,
) -> Setup:
    """Checks the config against itself, the model, the devices and the data.

    Args:
      config: a full config.
      for_training: False leaves the training images unread.
      dataset: the data set, if it has been opened, so that none of its files is read.
      devices: to lay the batch out on; None: all there are.
      workdir: of the run that is opened, whose data it must be; None: of none.

    Raises:
      UserError: the first thing that does not fit, and what to do.
    """
    validate(config)
    extensions.load_again(config.extensions)
    trackers = find_trackers(config.trackers, config)
    devices = devices or jax.devices()
    layout = parallel.create_layout(
        devices,
        **config.parallel,
        compiler_options=compiler_options(config.model.name, devices[0].platform),
    )
    parallel.require_equal_shares(layout, config.batch_size)
    create_network(config)  # Names and options of the model, before any data is read.
    optimizers.parse_rules(config.optimizer.rules)
    config = config.copy_and_resolve_references().unlock()
    config.data.image_size = config.data.image_size or MODELS[config.model.name].image_size
    if dataset is None:
        dataset = read_dataset(config, for_training=for_training, workdir=workdir)
    config.model.num_classes = count_classes(dataset, config.model.num_classes, config.data.source)
    config.lock()
    model = create_network(config, axis_name=parallel.AXIS)
    initialization = require_image_size(model, config.model.name, config.data.image_size)
    if (size := config.data.train_image_size) is not None:
        require_image_size(model, config.model.name, size, 'config.data.train_image_size')
    if for_training:
        if 'batch_stats' in initialization.abstract:
            group_size = config.batch_norm.group_size
            parallel.require_whole_groups(layout, config.batch_size, group_size)
        if config.augment.mixup or config.augment.cutmix:
            parallel.require_partners(layout, config.batch_size, config.augment.repeats)
        per_epoch = pipeline.steps_per_epoch(dataset.train, config.batch_size)
    else:  # A set to evaluate may be as small as it is.
        per_epoch = max(1, len(dataset.train) // config.batch_size)
    frozen = parse_patterns(config.freeze)
    params = initialization.abstract['params']
    freezing.require_trained(params, frozen)
    trained, _ = freezing.split_frozen(params, frozen)
    learning_rate = make_learning_rate(
        config.optimizer.learning_rate,
        config.optimizer.base_batch_size,
        batch_size=config.batch_size,
        num_epochs=config.num_epochs,
        steps_per_epoch=per_epoch,
        schedule=config.schedule,
    )
    optimizer = optimizers.make_optimizer(
        trained, learning_rate.schedule, **optimizer_options(config)
    )
    images = eval_images(config)
    normalize = make_normalize(images.mean, images.std)
    augment, mix_options = config.augment, ('mixup', 'cutmix', 'repeats')
    transforms = {name: augment[name] for name in augment if name not in mix_options}
    names = extensions.names_of(config.extensions)
    augment_images = make_augment(config.data.mean, extensions=names, **transforms)
    mix_maker = functools.partial(make_mix, **{name: augment[name] for name in mix_options})
    top_k = min(config.top_k, config.model.num_classes)
    train_step = steps.make_train_step(
        model,
        optimizer,
        augment=augment_images,
        mix=mix_maker(config.model.num_classes, parallel.AXIS),
        normalize=normalize,
        loss=LOSSES.bind(config.loss, config),
        seed=config.seed,
        top_k=top_k,
        label_smoothing=config.label_smoothing,
        frozen=frozen,
        ema_decay=config.ema.decay,
        remat=config.model.remat,
    )
    return Setup(
        model_name=config.model.name,
        dtype=config.model.dtype,
        remat=config.model.remat,
        model=model,
        initialization=initialization,
        init_from=config.init_from,
        frozen=frozen,
        averages_weights=config.ema.decay > 0,
        source=config.data.source,
        dataset=dataset,
        train_crop=train_crop(config),
        eval_crop=images.crop,
        num_threads=config.data.num_threads,
        normalize=normalize,
        layout=layout,
        seed=config.seed,
        batch_size=config.batch_size,
        repeats=config.augment.repeats,
        num_epochs=config.num_epochs,
        steps_per_epoch=per_epoch,
        top_k=top_k,
        learning_rate=learning_rate,
        optimizer=optimizer,
        augment=augment_images,
        make_mix=mix_maker,
        train_step=train_step,
        classify=steps.make_classify(model, normalize, tta_crops_of(images.crop)),
        intervals=Intervals(**{name: config[name] for name in Intervals._fields}),
        trackers=trackers,
    )


def resolve(config: ConfigDict, setup: Setup) -> ConfigDict:
    """Returns the config with what the data and the network fill in, as a run stores it."""
    config = config.copy_and_resolve_references().unlock()
    config.data.image_size = setup.eval_crop.size
    config.model.num_classes = len(setup.dataset.class_names)
    return config.lock()
