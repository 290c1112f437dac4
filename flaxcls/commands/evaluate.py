"""Evaluates runs in depth: what they are right about, how surely, and which of them is better.

  python -m flaxcls.commands.evaluate --workdir=runs/digits_resnet20
  python -m flaxcls.commands.evaluate --workdir=runs/digits_resnet20 --calibrate --csv=answers.csv
  python -m flaxcls.commands.evaluate --workdir=runs/digits_resnet20 --workdir=runs/digits_alexnet

Of one run: accuracy with its interval, loss, calibration error, scores of each class, confusions.
Of several: these beside one another, and McNemar's test of each against the first, on the same
images. Every validation image is counted once, and the accuracy is training's own.

The logits are kept in WORKDIR/predictions.npz, unless an override such as --config.data.source
makes them other predictions than the run's own, which then stay as they are; --csv writes any.
"""

import argparse
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flaxcls.config.options import keys_of
from flaxcls.errors import UserError
from flaxcls.evaluation import tables
from flaxcls.inference.calibration import calibrate, load_temperature, save_calibration
from flaxcls.inference.predictions import (
    Predictions,
    predict_validation,
    save_predictions,
    write_csv,
)
from flaxcls.system.cli import CommandParser, parse_overrides, run_command
from flaxcls.system.files import require_place
from flaxcls.training.restore import changed_options, load_run
from flaxcls.training.workdir import CALIBRATION_FILE, PREDICTIONS_FILE, require_different

_FLAGS = ('--workdir', '--checkpoint', '--calibrate', '--csv')


class _EvaluatedRun(NamedTuple):
    """What the command has learnt of a run."""

    workdir: str
    source: str  # Of the data.
    top_k: int
    changed: set[str]  # Options for which the logits are others than the run's own.
    predictions: Predictions


def _require_own_network(workdir: str, overrides: Mapping[str, Any]) -> None:
    """Raises UserError for a calibration that would be another network's, or other inputs'."""
    wrong = sorted(changed_options(workdir, overrides))
    if wrong:
        raise UserError(
            f'--calibrate measures what Classifier.load({workdir!r}) gives, which knows nothing of '
            f'--config.{wrong[0]}; leave it out.'
        )


def _tell(runs: Sequence[_EvaluatedRun], flags: argparse.Namespace) -> None:
    """Prints the scores of the runs, and writes what is to be kept."""
    first, top_k = runs[0].predictions, runs[0].top_k
    if len(runs) > 1:
        print(tables.comparison([(run.workdir, run.predictions) for run in runs], top_k))
    else:
        print(tables.summary(first, top_k))
        print(f'\n{tables.class_table(first)}\n\n{tables.confusions(first)}')
    print()
    for run in runs:
        _keep(run)
        if flags.calibrate:
            _calibrate(run)
    if flags.csv is not None:
        print(f'wrote {write_csv(first, flags.csv, temperature=_temperature(runs[0]))}')


def _keep(run: _EvaluatedRun) -> None:
    if run.changed:
        options = ', '.join(f'config.{key}' for key in sorted(run.changed))
        path = pathlib.Path(run.workdir) / PREDICTIONS_FILE
        print(f"{path} is not written, since {options} is not the run's own.")
    else:
        print(f'wrote {save_predictions(run.predictions, run.workdir)}')


def _calibrate(run: _EvaluatedRun) -> None:
    found = calibrate(run.predictions)
    print(
        f'temperature {found.temperature:.4f}; on images that it was not fitted on, expected '
        f'calibration error {found.ece_before:.2%} -> {found.ece_after:.2%}, loss '
        f'{found.loss_before:.4f} -> {found.loss_after:.4f}'
    )
    if found.loss_after > found.loss_before:
        print('It is not kept, since the probabilities are better as they are.')
        return
    path = save_calibration(found, run.workdir, source=run.source)
    print(f'wrote {path}, for Classifier.load of step {found.step}')
    if run.predictions.correct.all():
        print('Note: every answer is right, which does not tell how sure to be.')


def _temperature(run: _EvaluatedRun) -> float:
    """Returns that of the probabilities which Classifier.load gives."""
    if run.changed - keys_of('selects_images'):
        return 1.0
    return load_temperature(run.workdir, run.predictions.step)


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('flaxcls.commands.evaluate', __doc__)
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
    changed = [changed_options(workdir, overrides, images_too=True) for workdir in workdirs]
    if flags.calibrate:
        for workdir in workdirs:
            _require_own_network(workdir, overrides)
    runs = []
    for workdir, options in zip(workdirs, changed, strict=True):
        run = load_run(workdir, checkpoint=flags.checkpoint, overrides=overrides)
        source, top_k = run.setup.source, run.setup.top_k
        runs.append(_EvaluatedRun(workdir, source, top_k, options, predict_validation(run)))
    _tell(runs, flags)


if __name__ == '__main__':
    run_command(main)
