"""Evaluation: of a state, exactly once per example, and of a checkpoint of a run."""

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from flaxcls import metrics, parallel
from flaxcls.checkpoint import Checkpoints
from flaxcls.run_setup import Setup, load_stored_config, prepare, require_stored_classes
from flaxcls.train_state import TrainState


def make_evaluate(setup: Setup) -> Callable[[TrainState], dict[str, float]]:
    """Returns state -> {'val/loss', 'val/accuracy', 'val/top5_accuracy', 'val/count'}."""
    config = setup.config
    eval_step, make_batches = setup.make_eval_step(), setup.make_eval_batches()

    def evaluate(state: TrainState) -> dict[str, float]:
        all_sums = []
        for batch in parallel.to_devices(make_batches(), setup.layout):
            all_sums.append(eval_step(state, batch))
            parallel.limit_run_ahead(all_sums)
        return metrics.summarize(all_sums, 'val', min(config.top_k, config.model.num_classes))

    return evaluate


def describe(val: dict[str, float]) -> str:
    """Returns one line about an evaluation."""
    top_k = next(name for name in val if name.startswith('val/top'))
    return (
        f'val/accuracy {val["val/accuracy"]:.2%} of {val["val/count"]}, '
        f'{top_k} {val[top_k]:.2%}, val/loss {val["val/loss"]:.4f}'
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
    for note in setup.source.notes:
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
    setup = prepare(load_stored_config(workdir, overrides), for_training=training_too)
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
