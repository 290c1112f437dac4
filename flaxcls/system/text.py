"""Text for people: tables, sizes, times, and the closest to a misspelt word."""

import datetime
import difflib
from collections.abc import Iterable, Sequence
from typing import Any

import humanize


def did_you_mean(word: str, candidates: Sequence[str]) -> str:
    """Returns ' (did you mean ...?)' with the candidate most like `word`, or ''."""
    near = difflib.get_close_matches(word, candidates, n=1, cutoff=0.5)
    if not near:  # `dropout_rate` is most likely `model.dropout_rate`.
        near = [known for known in candidates if known.split('.')[-1] == word]
    return f' (did you mean {near[0]}?)' if near else ''


def table(rows: Iterable[Sequence[Any]], align: str) -> list[str]:
    """Returns a line for each row, with every column as wide as its widest cell.

    Args:
      rows: of the same number of cells, which are shown as `str` has them; the first are titles.
      align: a character for each column, < or > as in Python's formats.
    """
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    forms = [f'{{:{side}{width}}}' for side, width in zip(align, widths, strict=True)]
    return ['  '.join(forms).format(*row).rstrip() for row in texts]


def gib(size: float) -> str:
    """Returns bytes as a person reads them, as in 7.24 GiB or 47.68 MiB."""
    return humanize.naturalsize(size, binary=True, format='%.2f')


def clock(seconds: float) -> str:
    """Returns a time as in 0:01:02, which humanize's words are three times as long as."""
    return str(datetime.timedelta(seconds=round(seconds)))
