"""Predictions as a person reads them, and as programs do: a table, JSON and CSV, all streamed."""

import contextlib
import csv
import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TextIO

import tqdm
from tqdm.utils import disp_len

CSV_COLUMNS = ('file', 'rank', 'class', 'probability', 'error')
_FILE_COLUMNS, _CLASS_COLUMNS = 48, 24  # What is longer sticks out.


class Prediction(NamedTuple):
    """What is told of one file.

    Attributes:
      file: its path.
      classes: (name, probability) of the likeliest, the likeliest first.
      error: why it could not be read, and there are no classes.
    """

    file: str
    classes: tuple[tuple[str, float], ...] = ()
    error: str | None = None


Write = Callable[[Prediction], None]


@contextlib.contextmanager
def write_json(stream: TextIO) -> Iterator[Write]:
    """Gives a function that writes a prediction to a list in JSON, which is closed at the end."""
    separator = '\n'

    def write(prediction: Prediction) -> None:
        nonlocal separator
        # Only ASCII, which has escapes for names that are no valid text. At once, and so that the
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
    return {'file': prediction.file, 'predictions': classes}


@contextlib.contextmanager
def write_csv(stream: TextIO) -> Iterator[Write]:
    """Gives a function that writes a prediction as rows of CSV_COLUMNS."""
    writer = csv.writer(stream, lineterminator='\n')
    writer.writerow(CSV_COLUMNS)

    def write(prediction: Prediction) -> None:
        rows = [
            (prediction.file, rank, name, share, '')
            for rank, (name, share) in enumerate(prediction.classes, 1)
        ]
        writer.writerows(rows or [(prediction.file, '', '', '', prediction.error)])
        stream.flush()

    yield write


@contextlib.contextmanager
def write_table(
    stream: TextIO, files: Iterable[str], class_names: Iterable[str]
) -> Iterator[Write]:
    """Gives a function that writes a prediction as a line; one without classes is left out.

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
