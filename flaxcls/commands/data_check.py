"""Looks at every image of a data set before anything is trained on it.

  flaxcls data check --source=folder:photos
  flaxcls data check --source=folder:photos --json=report.json --sheets=sheets

Exit code 1 if something is wrong: files that cannot be read, the same picture in training and in
validation, or under different labels. Other duplicates, near duplicates, classes with few images
and odd sizes are remarks. All options of config.data apply, such as --config.data.val_split=test.
"""

import json
import pathlib
import sys
from collections.abc import Sequence

from flaxcls.errors import RunError
from flaxcls.system.cli import CommandParser


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('flaxcls data check', __doc__)
    parser.add_argument('--source', required=True, help='folder:PATH, manifest:FILE, tfds:NAME ...')
    parser.add_argument('--json', help='file for the whole report')
    parser.add_argument('--sheets', help='folder for a contact sheet of each class')
    flags, overrides = parser.parse_with_overrides(argv)
    import tqdm

    from flaxcls.config.files import load_config
    from flaxcls.config.validation import validate
    from flaxcls.data.contact_sheets import write_sheets
    from flaxcls.data.inspection import describe_report, inspect_dataset
    from flaxcls.system.files import require_place, write_atomically
    from flaxcls.training.dataset import open_configured_dataset

    config = load_config(None, {'data.source': flags.source, 'data.image_size': 32} | overrides)
    validate(config)
    if flags.json:
        require_place(flags.json)
    dataset = open_configured_dataset(config)
    for note in dataset.notes:
        print(f'Note: {note}')
    total = len(dataset.train) + len(dataset.val)
    with tqdm.tqdm(total=total, unit=' images', disable=not sys.stderr.isatty()) as bar:
        threads = config.data.num_threads
        report = inspect_dataset(dataset, num_threads=threads, on_progress=bar.update)
    for line in describe_report(report):
        print(line)
    if flags.json:
        path = pathlib.Path(flags.json).expanduser()
        write_atomically(path, json.dumps(report.to_json(), indent=1) + '\n')
        print(f'wrote {flags.json}')
    if flags.sheets:
        paths = write_sheets(dataset, pathlib.Path(flags.sheets).expanduser())
        print(f'wrote {len(paths)} contact sheets to {flags.sheets}')
    if report.is_wrong:
        raise RunError(f'{flags.source} has faults, listed above.')
