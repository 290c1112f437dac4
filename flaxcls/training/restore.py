"""A run that is opened again: its setup, its state, its evaluation."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from flaxcls.config.defaults import OBSERVING_OPTIONS
from flaxcls.errors import UserError
from flaxcls.training.checkpoints import Checkpoints
from flaxcls.training.evaluation import make_evaluate
from flaxcls.training.setup import Setup, build_setup
from flaxcls.training.state import TrainState
from flaxcls.training.workdir import CLASSES_FILE, load_class_names, load_stored_config

# What leaves the logits alone, and what says which images there are.
SAME_LOGITS = OBSERVING_OPTIONS | {'batch_size', 'data.cache'}


WHICH_IMAGES = frozenset(
    {'seed', 'data.source', 'data.train_split', 'data.val_split', 'data.val_fraction'}
    | {'data.on_error'}
)


def load_run(
    workdir: str | os.PathLike,
    *,
    checkpoint: str = 'newest',
    overrides: Mapping[str, Any] | None = None,
    training_too: bool = False,
) -> tuple[Setup, TrainState]:
    """Returns what a run was made of, and its state.

    Args:
      workdir: of the run.
      checkpoint: newest, best (by validation accuracy), or a step.
      overrides: of the stored config, such as another `data.source`.
      training_too: also look for unreadable files among the training images.

    Raises:
      UserError: there is no such run or checkpoint, or an override does not fit.
    """
    setup = open_run(workdir, overrides=overrides, training_too=training_too)
    for note in setup.dataset.notes:
        print(f'Note: {note}')
    return setup, restore_run(setup, workdir, checkpoint=checkpoint)


def open_run(
    workdir: str | os.PathLike,
    *,
    overrides: Mapping[str, Any] | None = None,
    training_too: bool = False,
) -> Setup:
    """Returns what a run was made of, which needs no checkpoint; arguments as `load_run`.

    Raises:
      UserError: there is no such run, an override does not fit, or the data is another.
    """
    workdir = pathlib.Path(workdir).expanduser()
    setup = build_setup(load_stored_config(workdir, overrides), for_training=training_too)
    require_stored_classes(setup, workdir)
    return setup


def restore_run(
    setup: Setup, workdir: str | os.PathLike, *, checkpoint: str = 'newest'
) -> TrainState:
    """Returns the state of the run in `workdir`, whose setup is given; arguments as `load_run`.

    Raises:
      UserError: there is no such checkpoint, or it is another network's.
      RunError: it cannot be read.
    """
    checkpoints = Checkpoints(pathlib.Path(workdir).expanduser(), read_only=True)
    try:
        return checkpoints.restore(
            checkpoints.find(checkpoint), setup.init_state(take_weights=False)
        )
    finally:
        checkpoints.close()


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
    setup, state = load_run(workdir, checkpoint=checkpoint, overrides=overrides)
    return {'step': int(state.step)} | make_evaluate(setup)(state)


def require_stored_classes(setup: Setup, workdir: str | os.PathLike) -> None:
    """Raises UserError unless the classes are, in their order, those the run began with.

    Imported weights do not tell the names of their classes: any are taken, with a note.
    """
    names = load_class_names(workdir)
    if names is None:
        print(
            f'Note: the weights in {str(workdir)!r} tell no names of classes; those of '
            f'{setup.config.data.source} are taken, in their order.'
        )
    elif names != list(setup.dataset.class_names):
        raise UserError(
            f'the classes of {setup.config.data.source} are not those that the run in '
            f'{str(workdir)!r} began with, which {CLASSES_FILE} lists; give it the same ones.'
        )
