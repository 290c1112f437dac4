"""Looks at every image of a data set before anything is trained on it.

  python -m flaxcls.check_data --source=folder:photos
  python -m flaxcls.check_data --source=folder:photos --json=report.json --sheets=sheets

Exit code 1 if something is wrong: files that cannot be read, the same picture in training and in
validation, or under different labels. Other duplicates, near duplicates, classes with few images
and odd sizes are remarks. All options of config.data apply, such as --config.data.val_split=test.
"""

import json
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import tqdm
from PIL import Image, ImageDraw, ImageFont

from flaxcls.config import parse_overrides
from flaxcls.data import crops
from flaxcls.data.inspection import SPLITS, Report, inspect_source
from flaxcls.data.sources import open_source
from flaxcls.data.splits import Source, Split
from flaxcls.data.threads import num_threads
from flaxcls.errors import CommandParser, RunError, run_command
from flaxcls.experiment_files import load_config
from flaxcls.output_files import require_place
from flaxcls.validation import validate

_CLASSES_SHOWN, _NAMES_SHOWN = 40, 10
_SHEET_COLUMNS, _SHEET_ROWS, _THUMBNAIL, _TITLE = 10, 6, 96, 32


def describe(report: Report, classes_shown: int = _CLASSES_SHOWN) -> Iterator[str]:
    """Yields the lines of a report for the terminal."""
    width = max(len('class'), *(len(entry['name']) for entry in report.classes))
    yield f'{"class":<{width}} {"train":>8} {"val":>8}'
    for entry in report.classes[:classes_shown]:
        yield f'{entry["name"]:<{width}} {entry["train"]:>8,} {entry["val"]:>8,}'
    if len(report.classes) > classes_shown:
        yield f'... and {len(report.classes) - classes_shown} more classes; --json has all.'
    totals = [sum(entry[split] for entry in report.classes) for split in SPLITS]
    yield f'{"all":<{width}} {totals[0]:>8,} {totals[1]:>8,}'
    yield 'formats: ' + ', '.join(f'{count:,} {name}' for name, count in report.formats.items())
    sizes = (f'{name} {h} x {w}' for name, (h, w) in report.sizes.items())
    yield f'height x width: {", ".join(sizes)}'
    unreadable = [f'{entry.split}: {entry.name} ({entry.reason})' for entry in report.unreadable]
    yield from _finding('WRONG', 'files cannot be read', unreadable)
    yield from _finding('WRONG', 'pictures are in training and in validation', report.across_splits)
    yield from _finding('WRONG', 'pictures have several labels', report.conflicts)
    yield from _finding('remark', 'pictures are there more than once', report.within_splits)
    yield from _finding('remark', 'groups look almost the same', report.near_duplicates)
    yield from _finding('remark', 'images are tiny or very long', report.odd_sizes)
    yield from _finding('remark', 'classes have under 10 training images', report.few_examples)
    yield from _finding('remark', 'classes are not in validation', report.not_in_validation)
    yield 'Something is wrong.' if report.is_wrong else 'Nothing is wrong.'


def _finding(kind: str, what: str, items: Sequence[str | list[str]]) -> Iterator[str]:
    if not items:
        return
    yield f'{kind}: {len(items):,} {what}'
    for item in items[:_NAMES_SHOWN]:
        names = [item] if isinstance(item, str) else item
        more = f' = ... {len(names) - 4} more' if len(names) > 4 else ''
        yield f'  {" = ".join(names[:4])}{more}'
    if len(items) > _NAMES_SHOWN:
        yield f'  ... and {len(items) - _NAMES_SHOWN:,} more; --json has all.'


def write_sheets(source: Source, folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes one picture for each class, of up to 60 of its training images; returns the files.

    Files that cannot be read leave their place empty.
    """
    folder.mkdir(parents=True, exist_ok=True)
    members = [[] for _ in source.class_names]
    for index, label in enumerate(_labels(source.train)):
        members[label].append(index)
    paths = []
    for label, name in enumerate(source.class_names):
        safe = re.sub(r'\W+', '_', name)[:60]
        paths.append(folder / f'{label:04d}_{safe}.png')
        _sheet(name, source.train, members[label]).save(paths[-1])
    return paths


def _labels(split: Split) -> Sequence[int]:
    labels = getattr(split, 'labels', None)
    return [split[i][1] for i in range(len(split))] if labels is None else labels


def _sheet(title: str, split: Split, members: list[int]) -> Image.Image:
    cells = _SHEET_COLUMNS * _SHEET_ROWS
    chosen = np.unique(np.linspace(0, len(members) - 1, cells).astype(int)) if members else []
    rows = -(-len(chosen) // _SHEET_COLUMNS)
    size = (_SHEET_COLUMNS * _THUMBNAIL, _TITLE + max(rows, 1) * _THUMBNAIL)
    sheet = Image.new('RGB', size, 'white')
    for cell, place in enumerate(chosen):
        row, column = divmod(cell, _SHEET_COLUMNS)
        try:
            image = crops.resize_and_center_crop(split[members[place]][0], _THUMBNAIL - 4, 1.0)
        except (ValueError, OSError):
            continue
        corner = (column * _THUMBNAIL + 2, _TITLE + row * _THUMBNAIL + 2)
        sheet.paste(Image.fromarray(image), corner)
    shown = f', {len(chosen)} shown' if len(chosen) < len(members) else ''
    text = f'{title}: {len(members):,} training images{shown}'
    ImageDraw.Draw(sheet).text((6, 6), text, 'black', ImageFont.load_default(16))
    return sheet


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('flaxcls.check_data', __doc__)
    parser.add_argument('--source', required=True, help='folder:PATH, manifest:FILE, tfds:NAME ...')
    parser.add_argument('--json', help='file for the whole report')
    parser.add_argument('--sheets', help='folder for a contact sheet of each class')
    flags, rest = parser.parse_known_args(argv)
    overrides = parse_overrides(rest, ['--source', '--json', '--sheets'])
    config = load_config(None, {'data.source': flags.source, 'data.image_size': 32} | overrides)
    validate(config)
    if flags.json:
        require_place(flags.json)
    source = open_source(config)
    for note in source.notes:
        print(f'Note: {note}')
    total = len(source.train) + len(source.val)
    with tqdm.tqdm(total=total, unit=' images', disable=not sys.stderr.isatty()) as bar:
        report = inspect_source(source, num_threads=num_threads(config), on_progress=bar.update)
    for line in describe(report):
        print(line)
    if flags.json:
        path = pathlib.Path(flags.json).expanduser()
        path.write_text(json.dumps(report.to_json(), indent=1) + '\n', encoding='utf-8')
        print(f'wrote {flags.json}')
    if flags.sheets:
        paths = write_sheets(source, pathlib.Path(flags.sheets).expanduser())
        print(f'wrote {len(paths)} contact sheets to {flags.sheets}')
    if report.is_wrong:
        raise RunError(f'{flags.source} has faults, listed above.')


if __name__ == '__main__':
    run_command(main)
