"""A table of image files: a CSV or TSV file with the columns path, label and perhaps split."""

import collections
import csv
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from flaxcls.data.datasets import Dataset, FileSplit, SplitSpec, in_order
from flaxcls.data.hold_out import hold_out
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
    path = os.path.expanduser(path)
    rows = _read_rows(pathlib.Path(path))
    if 'split' not in rows[0]:
        names = in_order({row['label'] for row in rows})
        every = _to_split(rows, names, _root_of(path))
        train, val, notes = hold_out(
            every, names, fraction=split_spec.val_fraction, seed=split_spec.seed
        )
        return Dataset(train, val, tuple(names), tuple(notes), is_held_out=True)
    split_spec.require_no_fraction(path, 'whose column split says what is for validation')
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
    splits = [_to_split(parts[name], names, _root_of(path)) for name in (train_split, val_split)]
    others = {name: len(part) for name, part in parts.items()}
    del others[train_split], others[val_split]
    notes = [f'{n} rows of the split {name!r} were left out.' for name, n in others.items()]
    return Dataset(*splits, tuple(names), tuple(notes))


def _root_of(path: str) -> str:
    return os.path.dirname(path) or '.'


def _read_rows(path: pathlib.Path) -> list[dict[str, str]]:
    """Returns the rows by column, with paths that lead to the files."""
    try:
        lines = path.read_text(encoding='utf-8-sig').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'config.data.source: {str(path)!r} cannot be read ({error}).') from None
    for delimiter in _DELIMITERS:
        table = csv.DictReader(lines, delimiter=delimiter)
        table.fieldnames = [name.strip().lower() for name in table.fieldnames or ()]
        if {'path', 'label'} <= set(table.fieldnames):
            break
    else:
        raise UserError(
            f'the first line of {str(path)!r} must name the columns path,label or '
            f'path,label,split; it is {lines[0] if lines else ""!r}.'
        )
    rows = [_to_row(path, row, table.line_num) for row in table]
    if not rows:
        raise UserError(f'{str(path)!r} has no rows below its first line.')
    return rows


def _to_row(path: pathlib.Path, row: dict[str | None, Any], line: int) -> dict[str, str]:
    surplus = len(row.pop(None, []))
    cells = {name: cell.strip() for name, cell in row.items() if cell is not None}
    missing = [name for name in ('path', 'label', 'split') if name in row and not cells.get(name)]
    if missing or surplus or len(cells) < len(row):
        count = f'{len(cells) + surplus} cells for {len(row)} columns'
        raise UserError(
            f'line {line} of {str(path)!r} has {f"no {missing[0]}" if missing else count}.'
        )
    return cells | {'path': os.path.join(path.parent, cells['path'])}


def _to_split(rows: list[dict[str, str]], names: list[str], root: str) -> FileSplit:
    label_of = {name: label for label, name in enumerate(names)}
    labels = np.array([label_of[row['label']] for row in rows], np.int32)
    return FileSplit([row['path'] for row in rows], labels, root)
