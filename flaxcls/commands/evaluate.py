"""Evaluates runs in depth: accuracy, calibration and scores of each class, or which run is better.

  flaxcls evaluate --workdir=runs/digits_resnet20
  flaxcls evaluate --workdir=runs/digits_resnet20 --calibrate --csv=predictions.csv
  flaxcls evaluate --workdir=runs/digits_resnet20 --coverage --costs=costs.csv
  flaxcls evaluate --workdir=runs/digits_resnet20 --drift=folder --json=drift.json
  flaxcls evaluate --workdir=runs/digits_resnet20 --workdir=runs/digits_alexnet

Of one run: accuracy with its interval, loss, calibration error, scores of each class, confusions.
Of several: these beside one another, and McNemar's test of each against the first, on the same
images. Every validation image is counted once, and the accuracy is training's own.

--coverage shows how accurate the network is where its least sure predictions are withheld, and the
--min_probability for `flaxcls predict` that does so. --costs is a CSV file of what it costs to take
an image of one class for one of another: a first line class,CLASS,CLASS,...,reject and a line for
each true class; reject, what a person's look costs, may be left out. Both believe the
probabilities, so calibrate the run before.

--drift compares other images, which need no labels, with the validation images: by light, contrast,
sharpness and colour, by how sure the network is, and by which classes it predicts. It says what has
changed, by how much, and whether that can be chance; --json writes it for programs.

The logits are kept in WORKDIR/predictions.npz, unless an override such as --config.data.source
makes them other predictions than the run's own, which then stay as they are; --csv writes any.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flaxcls.commands.flags import add_checkpoint, add_workdirs
from flaxcls.errors import UserError
from flaxcls.system.cli import CommandParser

if TYPE_CHECKING:
    from flaxcls.data.datasets import Split
    from flaxcls.evaluation.runs import EvaluatedRun


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('flaxcls evaluate', __doc__)
    add_workdirs(parser)
    add_checkpoint(parser)
    parser.add_argument(
        '--calibrate',
        action='store_true',
        help='fit a temperature, kept in WORKDIR/calibration.json for predict, export and serve',
    )
    parser.add_argument('--csv', metavar='FILE', help='write a line for each image, of one run')
    parser.add_argument(
        '--coverage', action='store_true', help='accuracy where the least sure are withheld'
    )
    parser.add_argument('--costs', metavar='FILE', help='what each decision costs, as CSV')
    parser.add_argument(
        '--drift',
        metavar='IMAGES',
        help='compare with other images: a folder, a pattern, or a source such as fashion_mnist',
    )
    parser.add_argument('--json', metavar='FILE', help='write what --drift finds, of one run')
    flags, overrides = parser.parse_with_overrides(argv)
    from flaxcls.evaluation.new_images import open_new_images
    from flaxcls.evaluation.runs import (
        calibrate_run,
        describe_decisions,
        describe_runs,
        evaluate_runs,
        keep_predictions,
    )
    from flaxcls.inference.predictions import write_csv

    _refuse_mistakes(flags, overrides)  # Before anything is computed.
    watched = flags.workdir if flags.drift is not None else []
    new_images = [open_new_images(workdir, flags.drift, overrides) for workdir in watched]
    runs = evaluate_runs(flags.workdir, checkpoint=flags.checkpoint, overrides=overrides)
    print(describe_runs(runs), end='\n\n')
    for run in runs:
        print(keep_predictions(run))
        if flags.calibrate:
            found, path = calibrate_run(run)
            print(found.describe())
            print(f'wrote {path}' if path else 'It is not kept: it would raise the loss.')
            if path and run.predictions.correct.all():
                print('Note: every prediction is right, which says little about confidence.')
        if flags.coverage or flags.costs:
            print(describe_decisions(run, coverage=flags.coverage, costs=flags.costs))
    for run, images in zip(runs, new_images, strict=False):
        _report_drift(run, images, flags.json)
    if flags.csv is not None:
        file = write_csv(runs[0].predictions, flags.csv, temperature=runs[0].temperature)
        print(f'wrote {file}')


def _refuse_mistakes(flags: argparse.Namespace, overrides: Mapping[str, Any]) -> None:
    from flaxcls.config.workdir import load_class_names
    from flaxcls.evaluation.rejection import read_costs
    from flaxcls.system.files import require_place
    from flaxcls.training.restore import require_own_network

    for flag, what in (('csv', 'predictions'), ('json', 'drift')):
        file = getattr(flags, flag)
        if file is not None:
            require_place(file)
            if len(flags.workdir) > 1:
                raise UserError(
                    f'--{flag}={file} takes the {what} of one run; give one --workdir, not '
                    f'{len(flags.workdir)}.'
                )
    if flags.json is not None and flags.drift is None:
        raise UserError(f'--json={flags.json} takes what --drift finds; give --drift=IMAGES too.')
    for workdir in flags.workdir if flags.costs is not None else ():
        names = load_class_names(workdir)
        if names is not None:
            read_costs(flags.costs, names)
    if flags.calibrate:
        for workdir in flags.workdir:
            require_own_network(workdir, overrides, '--calibrate')


def _report_drift(run: 'EvaluatedRun', images: 'Split', file: str | None) -> None:
    from flaxcls.evaluation.drift import describe_drift
    from flaxcls.evaluation.new_images import find_drift
    from flaxcls.system.files import require_place, write_atomically

    drift = find_drift(run, images)
    print(f'{run.workdir}: {describe_drift(drift)}')
    if file is not None:
        write_atomically(require_place(file), json.dumps(drift.to_json(), indent=1) + '\n')
        print(f'wrote {file}')
