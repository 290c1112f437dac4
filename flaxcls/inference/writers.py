"""Predictions as a person reads them, and as programs do: a table, JSON and CSV, all streamed."""

import contextlib
import csv
import json
import os
import pathlib
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TextIO

import tqdm
from tqdm.utils import disp_len

from flaxcls.data.paths import Found
from flaxcls.errors import UserError
from flaxcls.system.files import naming, require_place

CSV_COLUMNS = ('file', 'rank', 'class', 'probability', 'error', 'withheld')
_FILE_COLUMNS, _CLASS_COLUMNS = 48, 24  # What is longer sticks out.


class Prediction(NamedTuple):
    """What is written about one file.

    Attributes:
      file: path, as it was given.
      classes: (name, probability) of the likeliest, the likeliest first.
      error: why it could not be read, and there are no classes.
      withheld: the likeliest is less probable than was asked for, so a person should look.
    """

    file: str
    classes: tuple[tuple[str, float], ...] = ()
    error: str | None = None
    withheld: bool = False


Write = Callable[[Prediction], None]


@contextlib.contextmanager
def write_json(stream: TextIO) -> Iterator[Write]:
    """Yields a function that writes a prediction to a list in JSON, which is closed at the end."""
    separator = '\n'

    def write(prediction: Prediction) -> None:
        nonlocal separator
        # Only ASCII, which has escapes for names that are not valid text. At once, and so that the
        # end fits wherever an interrupt has come.
        stream.write(separator + json.dumps(_to_json(prediction)))
        separator = ',\n'
        stream.flush()

    stream.write('[')
    try:
        yield write
    finally:
        stream.write('\n]\n')
        stream.flush()


def _to_json(prediction: Prediction) -> dict[str, object]:
    if prediction.error:
        return {'file': prediction.file, 'error': prediction.error}
    classes = [{'class': name, 'probability': share} for name, share in prediction.classes]
    found = {'file': prediction.file, 'predictions': classes}
    return found | {'withheld': True} if prediction.withheld else found


@contextlib.contextmanager
def write_csv(stream: TextIO) -> Iterator[Write]:
    """Yields a function that writes a prediction as rows of CSV_COLUMNS."""
    writer = csv.writer(stream, lineterminator='\n')
    writer.writerow(CSV_COLUMNS)

    def write(prediction: Prediction) -> None:
        rows = [
            (prediction.file, rank, name, share, '', int(prediction.withheld) or '')
            for rank, (name, share) in enumerate(prediction.classes, 1)
        ]
        writer.writerows(rows or [(prediction.file, '', '', '', prediction.error, '')])
        stream.flush()

    yield write


@contextlib.contextmanager
def write_table(
    stream: TextIO, files: Iterable[str], class_names: Iterable[str]
) -> Iterator[Write]:
    """Yields a function that writes a prediction as a line; one without classes is left out.

    Columns are as wide as the widest file and class, up to a limit; a longer path has its own line.
    """
    width = min(_FILE_COLUMNS, max(map(_width, ('file', *files))))
    class_width = min(_CLASS_COLUMNS, max(map(_width, class_names)))
    say(f'{_pad("file", width)}  likeliest classes', stream)

    def write(prediction: Prediction) -> None:
        if prediction.error:
            return
        cells = [f'{_pad(name, class_width)} {share:7.2%}' for name, share in prediction.classes]
        file = prediction.file
        if _width(file) > width:
            say(printable(file), stream)
            file = ''
        cells += ['withheld'] if prediction.withheld else []
        say('  '.join([_pad(file, width), *cells]), stream)

    yield write


def printable(text: str) -> str:
    """Returns the text with escapes for what would break the line or the terminal."""
    return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _width(text: str) -> int:
    """Returns how many columns of a terminal the text takes."""
    # Composed, since a letter and its accent take one column.
    return disp_len(unicodedata.normalize('NFC', printable(text)))


def _pad(text: str, width: int) -> str:
    return printable(text) + ' ' * (width - _width(text))


def say(line: str, stream: TextIO) -> None:
    """Prints a line, above the progress bar where there is one."""
    if stream.isatty():
        tqdm.tqdm.write(line, file=stream)
    else:
        print(line, file=stream)
    stream.flush()


def require_outputs(files: Iterable[Found], outputs: Mapping[str, str | None]) -> None:
    """Raises UserError for outputs that cannot be written, before any is overwritten.

    Args:
      files: to read.
      outputs: {'json': file, - or None, 'csv': likewise}.
    """
    if outputs['json'] and outputs['json'] == outputs['csv']:
        raise UserError(f'--json and --csv are both {outputs["json"]}; give each its own file.')
    for name, value in outputs.items():
        if value in (None, '-'):
            continue
        path = require_place(value)
        if path.exists() and _is_among(path, files):
            raise UserError(f'--{name}={value} is among the files to read; name another one.')


def _is_among(path: pathlib.Path, files: Iterable[Found]) -> bool:
    real = os.path.realpath(path)
    return any(os.path.realpath(file.path) == real for file in files)


@contextlib.contextmanager
def open_writers(
    outputs: Mapping[str, str | None], paths: Sequence[str], class_names: Sequence[str]
) -> Iterator[list[Write]]:
    """Yields a writer for each output, and one for the table unless stdout is taken."""
    with contextlib.ExitStack() as stack:
        writers = []
        for name, write_as in (('json', write_json), ('csv', write_csv)):
            value, stream = outputs[name], sys.stdout
            if value is None:
                continue
            if value != '-':
                path = pathlib.Path(value).expanduser()
                stack.enter_context(naming(path))
                # CSV gives the bytes of names that are not valid text as they are.
                stream = path.open('w', encoding='utf-8', errors='surrogateescape', newline='')
                stack.enter_context(stream)
            writers.append(stack.enter_context(write_as(stream)))
        if '-' not in outputs.values():
            writers.append(stack.enter_context(write_table(sys.stdout, paths, class_names)))
        yield writers
