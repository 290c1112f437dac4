"""Classifies image files: the most probable classes, by the network that a run has trained.

  flaxcls predict --workdir=runs/digits_resnet20 image.jpg folder 'photos/**/*.png'
  find photos -newer last.csv | flaxcls predict --workdir=runs/pets --csv=next.csv -

Images are files, folders (all below, but for hidden files), patterns, where the shell has left them
in place, and - for paths from stdin, one a line. A file that is found twice is read once. Each is
prepared as in evaluation; of a GIF, the first frame counts.

The table shows the most probable classes. --json and --csv write them to a file, or to stdout (-)
instead of the table, an image at a time: what was written before an interruption is whole.
JSON is a list of {"file": ..., "predictions": [{"class": ..., "probability": ...}, ...]}, the most
probable class first. CSV has a row for each of them: file, rank, class, probability, error,
withheld.

With --min_probability, an image whose likeliest class is less probable is marked as withheld, in
JSON by "withheld": true: a person should look at it. `flaxcls evaluate --coverage` tells how many
these will be, and how often the others are right.

Files that cannot be read are named on stderr, and have {"file": ..., "error": ...}; the others are
predicted, and the exit code is 1.
"""

import sys
from collections.abc import Sequence

from flaxcls.commands.flags import add_checkpoint, add_crops, add_workdir
from flaxcls.errors import RunError, UserError
from flaxcls.system.cli import CommandParser


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('flaxcls predict', __doc__)
    add = parser.add_argument
    add('images', nargs='*', metavar='IMAGE', help='file, folder, pattern, or - for stdin')
    add_workdir(parser)
    add_checkpoint(parser)
    add_crops(parser)
    add('--topk', type=int, default=5, help='classes to show, at most all (5)')
    add('--json', metavar='FILE', help='file for the predictions, or - for stdout')
    add('--csv', metavar='FILE', help='the same as a table')
    add(
        '--min_probability',
        type=float,
        default=0.0,
        help='mark what is less probable as withheld, for a person to look at; see '
        '`flaxcls evaluate --coverage`',
    )
    add('--batch_size', type=int, default=64, help='images at once (64)')
    flags = parser.parse_intermixed_args(argv)
    for name in ('topk', 'batch_size'):
        if getattr(flags, name) < 1:
            raise UserError(f'--{name}={getattr(flags, name)} must be positive.')
    if not 0 <= flags.min_probability <= 1:
        raise UserError(f'--min_probability={flags.min_probability} must lie between 0 and 1.')
    from flaxcls.data.paths import find_files
    from flaxcls.inference.writers import require_outputs

    files = find_files(flags.images)
    outputs = {'json': flags.json, 'csv': flags.csv}
    require_outputs(files, outputs)
    from flaxcls.inference.classifier import Classifier
    from flaxcls.inference.predict_files import write_predictions

    classifier = Classifier.load(flags.workdir, checkpoint=flags.checkpoint, crops=flags.crops)
    if classifier.temperature != 1:
        print(
            f'Note: the probabilities are calibrated, with a temperature of '
            f'{classifier.temperature:.3g}.',
            file=sys.stderr,
        )
    unreadable = write_predictions(
        classifier,
        files,
        outputs,
        topk=flags.topk,
        batch_size=flags.batch_size,
        min_probability=flags.min_probability,
    )
    if unreadable:
        raise RunError(f'{unreadable:,} of {len(files):,} files could not be read, as said above.')
