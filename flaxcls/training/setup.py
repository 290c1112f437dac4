"""From a config to all that a run is made of, checked against one another before any work."""

import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from flaxcls.config.validation import validate
from flaxcls.data import pipeline
from flaxcls.data.datasets import Dataset
from flaxcls.data.sources import load_dataset
from flaxcls.errors import UserError
from flaxcls.models import from_config, registry
from flaxcls.models.init import Initialization
from flaxcls.training import freezing, logging, optimizers, parallel, schedules, state, steps
from flaxcls.training.checkpoints import Checkpoints
from flaxcls.training.parallel import Layout
from flaxcls.training.state import TrainState
from flaxcls.training.workdir import load_stored_config


class Setup(NamedTuple):
    """Everything that follows from a config before a weight is drawn."""

    config: ConfigDict  # Resolved: what the data and the model decide is filled in.
    dataset: Dataset
    model: nn.Module
    initialization: Initialization
    layout: Layout
    steps_per_epoch: int
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation

    @property
    def total_steps(self) -> int:
        return self.config.num_epochs * self.steps_per_epoch

    def init_state(self, *, take_weights: bool = True) -> TrainState:
        """Returns the state before the first step, on all devices.

        Args:
          take_weights: heed config.init_from, which a resumed run has no more use for.
        """
        variables = self.initialization.draw(jax.random.key(self.config.seed))
        if self.config.init_from and take_weights:
            variables = _take_weights(variables, self.config.init_from)
        return parallel.replicate(self._state_from(variables), self.layout)

    def abstract_state(self) -> TrainState:
        """Returns the shapes and dtypes of the state, with nothing computed."""
        variables = {'batch_stats': {}} | self.initialization.abstract
        return jax.eval_shape(self._state_from, variables)

    def make_train_step(self) -> Callable[..., Any]:
        """Returns `steps.make_train_step`'s for these devices, which gives up the old state."""
        step = steps.make_train_step(self.config, self.model, self.optimizer)
        return parallel.parallelize_train_step(step, self.layout)

    def make_eval_step(self) -> Callable[..., Any]:
        """Returns `steps.make_eval_step`'s for these devices."""
        step = steps.make_eval_step(self.config, self.model)
        return parallel.parallelize_eval_step(step, self.layout)

    def make_train_batches(self) -> Callable[[int], Iterator[pipeline.Batch]]:
        """Returns start_step -> this process's shares of the training batches, on the host."""
        return pipeline.make_train_batches(self.config, self.dataset.train, **_this_process())

    def make_eval_batches(self) -> Callable[[], Iterator[pipeline.Batch]]:
        """Returns () -> this process's shares of the evaluation batches, on the host."""
        return pipeline.make_eval_batches(self.config, self.dataset.val, **_this_process())

    def _state_from(self, variables: dict[str, Any]) -> TrainState:
        return state.create_train_state(
            variables,
            self.optimizer,
            from_config.frozen_patterns(self.config),
            ema=self.config.ema.decay > 0,
        )


def _this_process() -> dict[str, int]:
    return {'process_index': jax.process_index(), 'process_count': jax.process_count()}


def build_setup(
    config: ConfigDict,
    *,
    for_training: bool = True,
    source: Dataset | None = None,
    devices: Sequence[Any] | None = None,
) -> Setup:
    """Checks the config against itself, the model, the devices and the data.

    Args:
      config: a full config.
      for_training: False leaves the training images unread.
      source: the data set, if it has been opened, so that none of its files is read.
      devices: to lay the batch out on; None: all there are.

    Raises:
      UserError: the first thing that does not fit, and what to do.
    """
    validate(config)
    if config.tensorboard:
        logging.require_tensorboard()
    layout = parallel.create_layout(config, devices)
    config = config.copy_and_resolve_references().unlock()
    from_config.model_from_config(
        config
    )  # Names and options of the model, before any data is read.
    optimizers.parse_rules(config.optimizer.rules)
    config.data.image_size = config.data.image_size or registry.MODELS[config.model.name].image_size
    source = source or load_dataset(config, for_training=for_training)
    classes = len(source.class_names)
    if config.model.num_classes not in (None, classes):
        raise UserError(
            f'config.model.num_classes={config.model.num_classes} does not match the {classes} '
            f'classes of {config.data.source}; choose data with as many, or train with '
            'config.model.num_classes=None.'
        )
    if classes < 2:
        raise UserError(f'{config.data.source} has {classes} class; a classifier needs two.')
    config.model.num_classes = classes
    model = from_config.model_from_config(config, axis_name=state.AXIS)
    name, train_size = config.model.name, config.data.train_image_size
    initialization = registry.require_image_size(model, name, config.data.image_size)
    variables = initialization.abstract
    if train_size is not None:
        registry.require_image_size(model, name, train_size, 'data.train_image_size')
    if for_training:
        parallel.require_one_result(config, layout, batch_norm='batch_stats' in variables)
        per_epoch = pipeline.steps_per_epoch(config, source.train)
    else:  # A set to evaluate may be as small as it is.
        per_epoch = max(1, len(source.train) // config.batch_size)
    schedule = schedules.make_schedule(config, per_epoch)
    trained, _ = freezing.split_frozen(variables['params'], from_config.frozen_patterns(config))
    optimizer = optimizers.make_optimizer(config, schedule, trained)
    config.lock()
    return Setup(config, source, model, initialization, layout, per_epoch, schedule, optimizer)


def _take_weights(variables: dict[str, Any], workdir: str) -> dict[str, Any]:
    """Returns the newest weights of the run in `workdir`, in the places of `variables`.

    A classifier of another number of classes stays as it is in `variables`, which is said.

    Raises:
      UserError: there is no such run, or it is another network's.
    """
    workdir = pathlib.Path(workdir).expanduser()
    load_stored_config(workdir)
    checkpoints = Checkpoints(workdir, read_only=True)
    saved = checkpoints.restore_weights(checkpoints.find('newest'))
    checkpoints.close()
    ours = flatten_dict({name: variables[name] for name in ('params', 'batch_stats')})
    theirs = flatten_dict(saved)
    other_head = False
    for path in sorted(ours.keys() | theirs.keys()):
        shapes = [getattr(tree.get(path), 'shape', 'absent') for tree in (ours, theirs)]
        if shapes[0] == shapes[1]:
            ours[path] = theirs[path]
        elif path[1] == 'head' and 'absent' not in shapes:
            other_head = True
        else:
            raise UserError(
                f'config.init_from={str(workdir)!r} is another network: {"/".join(path[1:])} is '
                f'{shapes[1]} there, and {shapes[0]} here.'
            )
    note = '; its classifier has other classes, and a new one is trained' if other_head else ''
    print(f'Initial weights from {str(workdir)!r}{note}.')
    return {'params': {}, 'batch_stats': {}} | unflatten_dict(ours)
