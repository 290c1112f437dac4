"""Evaluates runs in depth: accuracy, calibration and scores of each class, or which run is better.

  flaxcls evaluate --workdir=runs/digits_resnet20
  flaxcls evaluate --workdir=runs/digits_resnet20 --calibrate --csv=predictions.csv
  flaxcls evaluate --workdir=runs/digits_resnet20 --coverage --costs=costs.csv
  flaxcls evaluate --workdir=runs/digits_resnet20 --workdir=runs/digits_alexnet

Of one run: accuracy with its interval, loss, calibration error, scores of each class, confusions.
Of several: these beside one another, and McNemar's test of each against the first, on the same
images. Every validation image is counted once, and the accuracy is training's own.

--coverage shows how accurate the network is where its least sure predictions are withheld, and the
--min_probability for `flaxcls predict` that does so. --costs is a CSV file of what it costs to take
an image of one class for one of another: a first line class,CLASS,CLASS,...,reject and a line for
each true class; reject, what a person's look costs, may be left out. Both believe the
probabilities, so calibrate the run before.

The logits are kept in WORKDIR/predictions.npz, unless an override such as --config.data.source
makes them other predictions than the run's own, which then stay as they are; --csv writes any.
"""

from collections.abc import Sequence

from flaxcls.commands.flags import add_checkpoint, add_workdirs
from flaxcls.errors import UserError
from flaxcls.system.cli import CommandParser


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
    flags, overrides = parser.parse_with_overrides(argv)
    from flaxcls.config.workdir import load_class_names
    from flaxcls.evaluation.rejection import read_costs
    from flaxcls.evaluation.runs import (
        calibrate_run,
        describe_decisions,
        describe_runs,
        evaluate_runs,
        keep_predictions,
    )
    from flaxcls.inference.predictions import write_csv
    from flaxcls.system.files import require_place
    from flaxcls.training.restore import require_own_network

    if flags.csv is not None:
        require_place(flags.csv)
        if len(flags.workdir) > 1:
            raise UserError(
                f'--csv={flags.csv} takes the predictions of one run; give one --workdir, not '
                f'{len(flags.workdir)}.'
            )
    for workdir in flags.workdir if flags.costs is not None else ():
        names = load_class_names(workdir)  # A mistake is told before anything is computed.
        if names is not None:
            read_costs(flags.costs, names)
    if flags.calibrate:
        for workdir in flags.workdir:
            require_own_network(workdir, overrides, '--calibrate')
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
    if flags.csv is not None:
        file = write_csv(runs[0].predictions, flags.csv, temperature=runs[0].temperature)
        print(f'wrote {file}')
