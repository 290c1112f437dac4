"""Evaluates runs in depth: what they are right about, how surely, and which of them is better.

  python -m flaxcls.evaluate --workdir=runs/digits_resnet20
  python -m flaxcls.evaluate --workdir=runs/digits_resnet20 --calibrate --csv=answers.csv
  python -m flaxcls.evaluate --workdir=runs/digits_resnet20 --workdir=runs/digits_alexnet

Of one run: accuracy with its interval, loss, calibration error, scores of each class, confusions.
Of several: these beside one another, and McNemar's test of each against the first, on the same
images. Every validation image is counted once, and the accuracy is training's own.

The logits are kept in WORKDIR/predictions.npz, unless an override such as --config.data.source
makes them other predictions than the run's own, which then stay as they are; --csv writes any.
"""

import argparse
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from flaxcls import metrics, parallel, score_tables
from flaxcls.calibration import calibrate, save_calibration
from flaxcls.checkpoint import Checkpoints
from flaxcls.classifier import CALIBRATION_FILE, load_temperature
from flaxcls.config import OBSERVING_OPTIONS, differences, parse_overrides
from flaxcls.errors import CommandParser, UserError, run_command
from flaxcls.output_files import require_place
from flaxcls.predictions import (
    PREDICTIONS_FILE,
    Predictions,
    predict_validation,
    save_predictions,
    write_csv,
)
from flaxcls.run_setup import (
    Setup,
    load_stored_config,
    prepare,
    require_different,
    require_stored_classes,
)
from flaxcls.train_state import TrainState

_FLAGS = ('--workdir', '--checkpoint', '--calibrate', '--csv')
# What leaves the logits alone, and what says which images there are.
SAME_LOGITS = OBSERVING_OPTIONS | {'batch_size', 'data.cache'}
WHICH_IMAGES = frozenset(
    {'seed', 'data.source', 'data.train_split', 'data.val_split', 'data.val_fraction'}
    | {'data.on_error'}
)


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


class _Run(NamedTuple):
    """What the command has learnt of a run."""

    workdir: str
    config: ConfigDict  # With the overrides.
    changed: set[str]  # Options for which the logits are others than the run's own.
    predictions: Predictions


def _changed_options(workdir: str, overrides: Mapping[str, Any]) -> set[str]:
    stored, changed = load_stored_config(workdir), load_stored_config(workdir, overrides)
    return differences(stored, changed).keys() - SAME_LOGITS


def _require_own_network(workdir: str, changed: set[str]) -> None:
    """Raises UserError for a calibration that would be another network's, or other inputs'."""
    wrong = sorted(changed - WHICH_IMAGES)
    if wrong:
        raise UserError(
            f'--calibrate measures what Classifier.load({workdir!r}) gives, which knows nothing of '
            f'--config.{wrong[0]}; leave it out.'
        )


def _tell(runs: Sequence[_Run], flags: argparse.Namespace) -> None:
    """Prints the scores of the runs, and writes what is to be kept."""
    first, top_k = runs[0].predictions, runs[0].config.top_k
    if len(runs) > 1:
        print(score_tables.comparison([(run.workdir, run.predictions) for run in runs], top_k))
    else:
        print(score_tables.summary(first, top_k))
        print(f'\n{score_tables.class_table(first)}\n\n{score_tables.confusions(first)}')
    print()
    for run in runs:
        _keep(run)
        if flags.calibrate:
            _calibrate(run)
    if flags.csv is not None:
        print(f'wrote {write_csv(first, flags.csv, temperature=_temperature(runs[0]))}')


def _keep(run: _Run) -> None:
    if run.changed:
        options = ', '.join(f'config.{key}' for key in sorted(run.changed))
        path = pathlib.Path(run.workdir) / PREDICTIONS_FILE
        print(f"{path} is not written, since {options} is not the run's own.")
    else:
        print(f'wrote {save_predictions(run.predictions, run.workdir)}')


def _calibrate(run: _Run) -> None:
    found = calibrate(run.predictions)
    print(
        f'temperature {found.temperature:.4f}; on images that it was not fitted on, expected '
        f'calibration error {found.ece_before:.2%} -> {found.ece_after:.2%}, loss '
        f'{found.loss_before:.4f} -> {found.loss_after:.4f}'
    )
    if found.loss_after > found.loss_before:
        print('It is not kept, since the probabilities are better as they are.')
        return
    path = save_calibration(found, run.workdir, source=run.config.data.source)
    print(f'wrote {path}, for Classifier.load of step {found.step}')
    if run.predictions.correct.all():
        print('Note: every answer is right, which does not tell how sure to be.')


def _temperature(run: _Run) -> float:
    """Returns that of the probabilities which Classifier.load gives."""
    if run.changed - WHICH_IMAGES:
        return 1.0
    return load_temperature(run.workdir, run.predictions.step)


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('flaxcls.evaluate', __doc__)
    parser.add_argument('--workdir', action='append', required=True, help='of a run; repeatable')
    parser.add_argument('--checkpoint', default='newest', help='newest (the default), best or step')
    parser.add_argument(
        '--calibrate',
        action='store_true',
        help=f'fit a temperature, and keep it in WORKDIR/{CALIBRATION_FILE} for Classifier.load',
    )
    parser.add_argument('--csv', metavar='FILE', help='write a line for each image, of one run')
    flags, rest = parser.parse_known_args(argv)
    overrides = parse_overrides(rest, _FLAGS)
    workdirs = [os.path.expanduser(workdir) for workdir in flags.workdir]
    require_different(workdirs)
    if flags.csv is not None:
        require_place(flags.csv)
        if len(workdirs) > 1:
            raise UserError(
                f'--csv={flags.csv} takes the answers of one run; give one --workdir, not '
                f'{len(workdirs)}.'
            )
    # What does not fit is told before anything is computed.
    changed = [_changed_options(workdir, overrides) for workdir in workdirs]
    if flags.calibrate:
        for workdir, options in zip(workdirs, changed, strict=True):
            _require_own_network(workdir, options)
    runs = []
    for workdir, options in zip(workdirs, changed, strict=True):
        setup, state = load_run(workdir, checkpoint=flags.checkpoint, overrides=overrides)
        runs.append(_Run(workdir, setup.config, options, predict_validation(setup, state)))
    _tell(runs, flags)


if __name__ == '__main__':
    run_command(main)
