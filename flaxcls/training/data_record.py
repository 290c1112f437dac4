"""Which images a run trains on and which are held out, by name: kept, and compared.

The record, images.json.gz, has of every file its name below the source, its label, its size and a
digest of its content, and of a set in shards the same of each shard. Where the source lies is a
hint, and no part of it.
"""

import gzip
import json
import os
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from flaxcls.config.workdir import (
    DATA_FILE,
    METRICS_FILE,
    load_stored_config,
    require_stored_classes,
)
from flaxcls.data.datasets import Dataset, FileSplit, Listing, list_examples
from flaxcls.data.sources import SOURCES
from flaxcls.errors import UserError
from flaxcls.system.files import write_atomically
from flaxcls.system.translation import Message

ACCEPT = 'FLAXCLS_ACCEPT_DATA_CHANGES'  # 1: go on with other data; set by --accept_data_changes.
_SHOWN = 3
PLACES = ('source', 'data_dir', 'train_split', 'val_split')  # Who gives one names other data.


class DataRecord(NamedTuple):
    """What is kept of a run's data.

    Attributes:
      source: as config.data.source, with an absolute path.
      train: what the run has trained on; after changes that were accepted, all that it ever has.
      val: what it is evaluated on.
    """

    source: str
    train: Listing
    val: Listing


def make_record(dataset: Dataset, source: str) -> DataRecord:
    """Returns what is to be kept of a data set."""
    train, val = list_examples(dataset.train), list_examples(dataset.val)
    return DataRecord(_with_absolute_path(source), train, val)


def write_record(record: DataRecord, workdir: pathlib.Path) -> None:
    content = record._asdict() | {
        name: listing._asdict() for name, listing in (('train', record.train), ('val', record.val))
    }
    write_atomically(workdir / DATA_FILE, gzip.compress(json.dumps(content).encode(), mtime=0))


def read_record(workdir: str | os.PathLike) -> DataRecord | None:
    """Returns what a run's data was; None: an earlier version kept nothing, or nothing has begun.

    Raises:
      UserError: the record is damaged.
    """
    path = pathlib.Path(workdir).expanduser() / DATA_FILE
    if not path.exists():
        return None
    try:
        content = json.loads(gzip.decompress(path.read_bytes()))
        train, val = Listing(**content['train']), Listing(**content['val'])
        if any(len({len(column) for column in listing}) > 1 for listing in (train, val)):
            raise ValueError('columns of different lengths')
        return DataRecord(content['source'], train, val)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'{str(path)!r} is damaged ({error}), so it cannot be told which images the run was '
            'trained on; put back a copy, or train in a new workdir.'
        ) from None


def locate(source: str, workdir: str | os.PathLike) -> str:
    """Returns the source with the path at which the run's data was, if it is there still."""
    record, stored = read_record(workdir), load_stored_config(workdir)
    if record is None or source != stored.data.source:
        return source
    kind, _, path = record.source.partition(':')
    return record.source if _has_path(kind) and os.path.exists(path) else source


def require_same_data(
    dataset: Dataset, opened: Mapping[str, str | None], workdir: str | os.PathLike
) -> Dataset:
    """Returns the data set of a run that is opened, if it is the one the run began with.

    With --accept_data_changes it may be another, but of what the run has trained on nothing is
    left in validation. Data that is named, by another config.data.source or split, is taken as it
    is.

    Args:
      dataset: as it is today.
      opened: the options of config.data that say where it is, see `PLACES`.
      workdir: of the run.

    Raises:
      UserError: it has changed.
    """
    stored = load_stored_config(workdir)
    record = read_record(workdir)
    if any(opened[key] != stored.data[key] for key in PLACES):
        return dataset
    if record is None:
        _refuse_redrawn(dataset, workdir)
        return dataset
    require_stored_classes(workdir, dataset.class_names, opened['source'])
    now = make_record(dataset, opened['source'])
    changes = [*_moved(record, now), *_changed('training', record.train, now.train)]
    changes += _changed('validation', record.val, now.val)
    if not changes:
        return dataset
    found = f'the data of {opened["source"]} is not what the run in {str(workdir)!r} began with: '
    if os.environ.get(ACCEPT) != '1':
        raise UserError(
            f'{found}{"; ".join(changes)}. Put it back, name other data, or go on with this with '
            '--accept_data_changes.'
        )
    print(f'Warning: {found}{"; ".join(changes)}.')
    return _without_trained(dataset, record.train)


def _refuse_redrawn(dataset: Dataset, workdir: str | os.PathLike) -> None:
    """Refuses to evaluate an earlier version's run on what it may have been trained on."""
    has_trained = (pathlib.Path(workdir) / METRICS_FILE).exists()  # Imported weights have not.
    if has_trained and dataset.is_held_out and os.environ.get(ACCEPT) != '1':
        raise UserError(
            f'the run in {str(workdir)!r} was begun by a version that held out other images for '
            'validation, and did not keep which; name a validation set with --config.data.source, '
            'or go on with --accept_data_changes.'
        )


def merge_records(before: DataRecord | None, now: DataRecord) -> DataRecord:
    """Returns the record of a run that goes on with other data: what it trained on stays in it."""
    if before is None:
        return now
    known = set(now.train.names)
    rows = [row for row, name in enumerate(before.train.names) if name not in known]
    train = Listing(
        *(
            [*new, *(old[row] for row in rows)]
            for new, old in zip(now.train, before.train, strict=True)
        )
    )
    return now._replace(train=train)


def _without_trained(dataset: Dataset, trained: Listing) -> Dataset:
    val = dataset.val
    if not isinstance(val, FileSplit):
        return dataset
    names, digests = set(trained.names), set(trained.digests) - {''}
    listing = val.listing()
    rows = [
        name not in names and digest not in digests
        for name, digest in zip(listing.names, listing.digests, strict=True)
    ]
    if all(rows):
        return dataset
    if not any(rows):
        raise UserError('the run has trained on every image that is for validation now.')
    note = Message(
        '{count} images that the run has trained on are left out of validation.',
        count=rows.count(False),
    )
    return dataset.replace(val=val.take(np.array(rows)), notes=(*dataset.notes, note))


def _moved(before: DataRecord, now: DataRecord) -> list[str]:
    """Returns a phrase if images that the run has trained on are for validation now."""
    digests = set(before.train.digests) - {''}
    names = set(before.train.names) - set(before.val.names)
    moved = [
        name
        for name, digest in zip(now.val.names, now.val.digests, strict=True)
        if name in names or (digest in digests and name not in before.val.names)
    ]
    return _phrase(moved, 'that it has trained on', 'in validation')


def _changed(which: str, before: Listing, now: Listing) -> list[str]:
    old, new = _by_name(before), _by_name(now)
    both = [name for name in new if name in old]
    # Of files that are not read, as those for training in an evaluation, the unreadable ones are
    # there still that were left out; new ones have no say in it.
    unread = any(before.digests) and not any(now.digests)
    phrases = [
        *_phrase([name for name in old if name not in new], which, 'gone'),
        *_phrase([name for name in new if name not in old and not unread], which, 'new'),
        *_phrase([n for n in both if new[n][0] != old[n][0]], which, 'of another class'),
    ]
    other = [
        n
        for n in both
        if new[n][1] != old[n][1] or (new[n][2] and old[n][2] and new[n][2] != old[n][2])
    ]
    return [*phrases, *_phrase(other, which, 'of other content')]


def _by_name(listing: Listing) -> Mapping[str, tuple[int, int, str]]:
    rows = zip(*listing, strict=True)
    return {name: (label, size, digest) for name, label, size, digest in rows}


def _phrase(names: list[str], which: str, what: str) -> list[str]:
    if not names:
        return []
    shown = ', '.join(names[:_SHOWN]) + (', ...' if len(names) > _SHOWN else '')
    kind = f'images {which}' if which.startswith('that') else f'{which} images'
    return [f'{len(names)} {kind} {"is" if len(names) == 1 else "are"} {what} ({shown})']


def _has_path(kind: str) -> bool:
    return SOURCES.facts.get(kind, {}).get('argument') in ('PATH', 'FILE.csv')


def _with_absolute_path(source: str) -> str:
    kind, _, path = source.partition(':')
    return f'{kind}:{os.path.abspath(os.path.expanduser(path))}' if _has_path(kind) else source
