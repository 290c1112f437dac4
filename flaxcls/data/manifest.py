"""A table of image files: a CSV or TSV file with the columns path, label and perhaps split."""

import collections
import csv
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from flaxcls.data.datasets import Dataset, FileSplit, SplitSpec, hold_out, in_order
from flaxcls.errors import UserError

_DELIMITERS = ('\t', ',', ';')


def open_manifest(path: str, split_spec: SplitSpec) -> Dataset:
    """Returns the images that a table lists; its first line names the columns.

    Paths are relative to the table's folder, or absolute. Classes are ordered as those of a folder,
    and are those of the training rows. Without a column `split`, a fraction of every class is held
    out.

    Args:
      path: of the table, UTF-8, separated by commas, semicolons or tabs.
      split_spec: what the column `split` says, or the fraction.

    Raises:
      UserError: there is no such table, or it is not of that form.
    """
    rows = _read_rows(pathlib.Path(path).expanduser())
    if 'split' not in rows[0]:
        names = in_order({row['label'] for row in rows})
        train, val, note = hold_out(_to_split(rows, names), split_spec)
        return Dataset(train, val, tuple(names), (note,))
    split_spec.require_no_fraction(path, 'whose column split tells what is for validation')
    return _by_split(path, rows, split_spec.train_name, split_spec.val_names)


def _by_split(
    path: str, rows: list[dict[str, str]], train_split: str, val_splits: Sequence[str]
) -> Dataset:
    parts = collections.defaultdict(list)
    for row in rows:
        parts[row['split']].append(row)
    val_split = next((name for name in val_splits if name in parts), None)
    if train_split not in parts or val_split is None:
        wanted = train_split if train_split not in parts else ' or '.join(val_splits)
        raise UserError(
            f'{path!r} has no rows of the split {wanted}; its splits are {", ".join(parts)}: name '
            'them in config.data.train_split and config.data.val_split.'
        )
    names = in_order({row['label'] for row in parts[train_split]})
    for row in parts[val_split]:
        if row['label'] not in names:
            raise UserError(
                f'{path!r} has validation images of {row["label"]!r}, a class that no training row '
                'has.'
            )
    splits = [_to_split(parts[name], names) for name in (train_split, val_split)]
    others = {name: len(part) for name, part in parts.items()}
    del others[train_split], others[val_split]
    notes = [f'{n} rows of the split {name!r} were left out.' for name, n in others.items()]
    return Dataset(*splits, tuple(names), tuple(notes))


def _read_rows(path: pathlib.Path) -> list[dict[str, str]]:
    """Returns the rows by column, with paths that lead to the files."""
    try:
        lines = path.read_text(encoding='utf-8-sig').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'config.data.source: {str(path)!r} cannot be read ({error}).') from None
    header = lines[0] if lines else ''
    for delimiter in _DELIMITERS:
        columns = [column.strip().lower() for column in header.split(delimiter)]
        if {'path', 'label'} <= set(columns):
            break
    else:
        raise UserError(
            f'the first line of {str(path)!r} must name the columns path,label or '
            f'path,label,split; it is {header!r}.'
        )
    table = csv.reader(lines[1:], delimiter=delimiter)
    rows = [_to_row(path, columns, cells, table.line_num + 1) for cells in table if cells]
    if not rows:
        raise UserError(f'{str(path)!r} has no rows below its first line.')
    return rows


def _to_row(path: pathlib.Path, columns: list[str], cells: list[str], line: int) -> dict[str, str]:
    row = dict(zip(columns, (cell.strip() for cell in cells), strict=False))
    missing = [name for name in ('path', 'label', 'split') if name in columns and not row.get(name)]
    if missing or len(cells) != len(columns):
        what = f'no {missing[0]}' if missing else f'{len(cells)} cells for {len(columns)} columns'
        raise UserError(f'line {line} of {str(path)!r} has {what}.')
    return row | {'path': os.path.join(path.parent, row['path'])}


def _to_split(rows: list[dict[str, str]], names: list[str]) -> FileSplit:
    label_of = {name: label for label, name in enumerate(names)}
    labels = np.array([label_of[row['label']] for row in rows], np.int32)
    return FileSplit([row['path'] for row in rows], labels)
