"""Tells what is in image files: the likeliest classes, by the network that a run has trained.

  python -m flaxcls.commands.predict --workdir=runs/digits_resnet20 image.jpg folder \\
      'photos/**/*.png'
  find photos -newer last.csv | python -m flaxcls.commands.predict --workdir=runs/pets \\
      --csv=next.csv -

Images are files, folders (all below, but for hidden files), patterns, where the shell has left them
in place, and - for paths from stdin, one a line. A file that is found twice is read once. Each is
prepared as in evaluation; of a GIF, the first frame counts.

The table shows the likeliest classes. --json and --csv write them to a file, or to stdout (-)
instead of the table, an image at a time: what was written before an interruption is whole.
JSON is a list of {"file": ..., "predictions": [{"class": ..., "probability": ...}, ...]}, the
likeliest class first. CSV has a row for each of them: file, rank, class, probability, error.

Files that cannot be read are named on stderr, and have {"file": ..., "error": ...}; the others are
predicted, and the exit code is 1.
"""

import argparse
import contextlib
import os
import pathlib
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence

import tqdm

from flaxcls.data.paths import Found, find_files
from flaxcls.errors import RunError, Stopped, UserError
from flaxcls.inference.classifier import BATCH_SIZE, CROPS, Classifier
from flaxcls.inference.predict_files import TOPK, predict_files
from flaxcls.inference.writers import Write, printable, say, write_csv, write_json, write_table
from flaxcls.system.cli import CommandParser, run_command
from flaxcls.system.files import require_place


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser('flaxcls.commands.predict', __doc__)
    add = parser.add_argument
    add('images', nargs='*', metavar='IMAGE', help='file, folder, pattern, or - for stdin')
    add('--workdir', required=True, help='of the run')
    add('--checkpoint', default='newest', help='newest (the default), best or step')
    add('--crops', choices=CROPS, help='views to average (as the run does)')
    add('--topk', type=int, default=TOPK, help=f'classes to tell, at most all ({TOPK})')
    add('--json', metavar='FILE', help='file for the predictions, or - for stdout')
    add('--csv', metavar='FILE', help='the same as a table')
    add('--batch_size', type=int, default=BATCH_SIZE, help=f'images at once ({BATCH_SIZE})')
    flags = parser.parse_intermixed_args(argv)
    for name in ('topk', 'batch_size'):
        if getattr(flags, name) < 1:
            raise UserError(f'--{name}={getattr(flags, name)} must be positive.')
    return flags


def _require_outputs(flags: argparse.Namespace, files: Iterable[Found]) -> None:
    """Refuses outputs that cannot be, before anything is computed or overwritten."""
    if flags.json and flags.json == flags.csv:
        raise UserError(f'--json and --csv are both {flags.json}; give each its own file.')
    for name in ('json', 'csv'):
        value = getattr(flags, name)
        if value in (None, '-'):
            continue
        path = require_place(value)
        if path.exists() and _is_among(path, files):
            raise UserError(f'--{name}={value} is among the files to read; name another one.')


def _is_among(path: pathlib.Path, files: Iterable[Found]) -> bool:
    real = os.path.realpath(path)
    return any(os.path.realpath(file.path) == real for file in files)


@contextlib.contextmanager
def _open_writers(
    flags: argparse.Namespace, paths: Sequence[str], class_names: Sequence[str]
) -> Iterator[list[Write]]:
    with contextlib.ExitStack() as stack:
        writers = []
        for name, write_as in (('json', write_json), ('csv', write_csv)):
            value, stream = getattr(flags, name), sys.stdout
            if value is None:
                continue
            if value != '-':
                path = pathlib.Path(value).expanduser()
                # CSV gives the bytes of names that are no valid text as they are.
                stream = path.open('w', encoding='utf-8', errors='surrogateescape', newline='')
                stack.enter_context(stream)
            writers.append(stack.enter_context(write_as(stream)))
        if '-' not in (flags.json, flags.csv):
            writers.append(stack.enter_context(write_table(sys.stdout, paths, class_names)))
        yield writers


def main(argv: Sequence[str]) -> None:
    flags = _parse(argv)
    files = find_files(flags.images)
    _require_outputs(flags, files)
    classifier = Classifier.load(flags.workdir, checkpoint=flags.checkpoint, crops=flags.crops)
    if classifier.temperature != 1:
        print(
            f'Note: the probabilities are calibrated, with a temperature of '
            f'{classifier.temperature:.3g}.',
            file=sys.stderr,
        )
    unreadable = _predict_and_write(classifier, files, flags)
    if unreadable:
        raise RunError(f'{unreadable:,} of {len(files):,} files could not be read, as said above.')


def _predict_and_write(
    classifier: Classifier, files: Sequence[Found], flags: argparse.Namespace
) -> int:
    """Returns how many files could not be read."""
    unreadable = done = 0
    predictions = predict_files(classifier, files, topk=flags.topk, batch_size=flags.batch_size)
    raw_to_terminal = '-' in (flags.json, flags.csv) and sys.stdout.isatty()
    show_bar = sys.stderr.isatty() and not raw_to_terminal
    with (
        tqdm.tqdm(total=len(files), unit=' images', disable=not show_bar, leave=False) as bar,
        _open_writers(flags, [file.path for file in files], classifier.class_names) as writers,
        contextlib.closing(predictions),
    ):
        try:
            for prediction in predictions:
                if prediction.error:
                    unreadable += 1
                    say(f'{printable(prediction.file)}: {prediction.error}', sys.stderr)
                for write in writers:
                    write(prediction)
                done += 1
                bar.update()
        except KeyboardInterrupt:
            message = f'Interrupted after {done:,} of {len(files):,} files.'
            raise Stopped(message, signal.SIGINT) from None
    return unreadable


if __name__ == '__main__':
    run_command(main)
