"""A run that is opened again: its setup, its weights, its evaluation."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from flaxcls.config.config_dict import differences
from flaxcls.config.options import keys_of
from flaxcls.config.workdir import load_stored_config, require_stored_classes
from flaxcls.errors import UserError
from flaxcls.training.checkpoint_files import read_run_weights
from flaxcls.training.evaluation import make_evaluate
from flaxcls.training.setup import Setup, build_setup


class Restored(NamedTuple):
    """A run that is open.

    Attributes:
      setup: what it is made of.
      step: training step of the checkpoint.
      variables: {'params': ..., 'batch_stats': ...} of what is evaluated, on all devices.
    """

    setup: Setup
    step: int
    variables: dict[str, Any]


def load_run(
    workdir: str | os.PathLike,
    *,
    checkpoint: str = 'newest',
    overrides: Mapping[str, Any] | None = None,
    training_too: bool = False,
) -> Restored:
    """Returns what a run is made of, and what is evaluated of a checkpoint.

    Args:
      workdir: path of the directory that the run was trained in.
      checkpoint: newest, best (by validation accuracy), or a step.
      overrides: of the stored config, such as another `data.source`.
      training_too: also look for unreadable files among the training images.

    Raises:
      UserError: there is no such run or checkpoint, or an override does not fit.
    """
    setup = open_run(workdir, overrides=overrides, training_too=training_too)
    for note in setup.dataset.notes:
        print(f'Note: {note}')
    return restore_run(setup, workdir, checkpoint=checkpoint)


def open_run(
    workdir: str | os.PathLike,
    *,
    overrides: Mapping[str, Any] | None = None,
    training_too: bool = False,
) -> Setup:
    """Returns what a run is made of, which needs no checkpoint; arguments as `load_run`.

    Raises:
      UserError: there is no such run, an override does not fit, or the data is another.
    """
    workdir = pathlib.Path(workdir).expanduser()
    config = load_stored_config(workdir, overrides)
    setup = build_setup(config, for_training=training_too, workdir=workdir)
    require_stored_classes(workdir, setup.dataset.class_names, setup.source)
    return setup


def restore_run(
    setup: Setup, workdir: str | os.PathLike, *, checkpoint: str = 'newest'
) -> Restored:
    """Returns the run in `workdir`, whose setup is given; arguments as `load_run`.

    Raises:
      UserError: there is no such checkpoint, or it is another network's.
      RunError: it cannot be read.
    """
    like = setup.abstract_state().eval_variables
    return Restored(setup, *read_run_weights(workdir, checkpoint, like))


def evaluate_workdir(
    workdir: str | os.PathLike,
    *,
    checkpoint: str = 'newest',
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Returns step, val/loss, val/accuracy, val/top{k}_accuracy and val/count of a checkpoint.

    The newest checkpoint of a finished run repeats training's own last value exactly.

    Args, Raises: as `load_run`.
    """
    run = load_run(workdir, checkpoint=checkpoint, overrides=overrides)
    return {'step': run.step} | make_evaluate_setup(run.setup)(run.variables)


def make_evaluate_setup(setup: Setup) -> Any:
    """Returns variables -> the evaluation on the run's validation set; see `make_evaluate`."""
    return make_evaluate(
        setup.make_eval_step(), setup.make_eval_batches(), setup.layout, setup.top_k
    )


def changed_options(
    workdir: str | os.PathLike, overrides: Mapping[str, Any], *, images_too: bool = False
) -> set[str]:
    """Returns the overrides for which the logits of a run are others than its own.

    Args:
      workdir: path of the directory that the run was trained in.
      overrides: of its stored config.
      images_too: count those that say which images there are, not how the network sees them.
    """
    stored, changed = load_stored_config(workdir), load_stored_config(workdir, overrides)
    columns = ('neutral', 'same_logits', *(() if images_too else ('selects_images',)))
    return differences(stored, changed).keys() - keys_of(*columns)


def require_own_network(
    workdir: str | os.PathLike, overrides: Mapping[str, Any], purpose: str
) -> None:
    """Raises UserError for overrides that do more than say which images there are.

    Args:
      workdir: path of the directory that the run was trained in.
      overrides: {dotted key: value}, of the config.
      purpose: what takes the network as it is, for the message.
    """
    wrong = changed_options(workdir, overrides)
    if wrong:
        raise UserError(
            f'--config.{min(wrong)} would change the network of the run, and {purpose} takes it as '
            'it is; leave it out.'
        )
