"""Contact sheets: a picture of the training images of each class."""

import pathlib
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from flaxcls.data import crops
from flaxcls.data.datasets import Dataset, Split
from flaxcls.system.files import naming

_SHEET_COLUMNS, _SHEET_ROWS, _THUMBNAIL, _TITLE = 10, 6, 96, 32


def write_sheets(source: Dataset, folder: pathlib.Path) -> list[pathlib.Path]:
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
        with naming(paths[-1]):
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
