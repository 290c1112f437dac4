"""TensorFlow Datasets without TensorFlow: sets prepared as array_record, read in place."""

import functools
import os
import pathlib
import re
from concurrent import futures

import numpy as np

from flaxcls.data import images
from flaxcls.data.datasets import ArraySplit, Dataset, RecordSplit, Split, SplitSpec
from flaxcls.errors import RunError, UserError
from flaxcls.system.threads import count_cores
from flaxcls.system.translation import Message

_MAX_BYTES_IN_MEMORY = 2**30


_RECORDS_AT_ONCE = 512  # Eight times as fast as one by one.


def default_data_dir() -> pathlib.Path:
    """Returns where TFDS itself looks for data sets."""
    return pathlib.Path(os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')).expanduser()


def prepare_command(name: str, data_dir: pathlib.Path) -> str:
    """Returns the command line that prepares the data set `name`."""
    command = f'flaxcls data prepare --name={name}'
    return command if data_dir == default_data_dir() else f'{command} --data_dir={data_dir}'


def open_tfds(
    name: str, data_dir: pathlib.Path, splits: SplitSpec, num_threads: int | None = None
) -> Dataset:
    """Returns the prepared data set `name`, such as cifar10, imagenet2012 or NAME:VERSION.

    Images of one fixed size are decoded into memory, where they take up to 1 GiB.

    Args:
      name: as TFDS writes it, NAME[/CONFIG][:VERSION].
      data_dir: the folder with all data sets.
      splits: names of splits, or slices such as train[:90%].
      num_threads: for decoding; None: one per core.

    Raises:
      UserError: it is not prepared, not in the array_record format, or has no such split.
    """
    folder = find_prepared(name, data_dir)
    if folder is None:
        raise UserError(
            f'{name} is not prepared in {data_dir}; run  pip install "flaxcls[prepare]" && '
            f'{prepare_command(name, data_dir)}'
        )
    import tensorflow_datasets as tfds  # noqa: PLC0415 - a second that other sources need not wait

    builder = tfds.builder_from_directory(folder)
    features = builder.info.features
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(
            f'{folder} is in the {builder.info.file_format.value} format, which has no random '
            f'access; move it away and run {prepare_command(name, data_dir)}'
        )
    if not {'image', 'label'} <= set(features) or not hasattr(features['label'], 'names'):
        raise UserError(
            f'{name} is not a set of images with one label each; it has {list(features)}.'
        )
    present = list(builder.info.splits)
    train_split, val_splits = splits.train_name, splits.val_names
    val_split = next((split for split in val_splits if _split_name(split) in present), None)
    for split in (train_split, val_split):
        if split is None or _split_name(split) not in present:
            wanted = train_split if split == train_split else ' or '.join(val_splits)
            raise UserError(f'{name} has no split {wanted}; it has {", ".join(present)}.')
    load = functools.partial(_load_split, builder, num_threads=num_threads)
    train, val = load(train_split), load(val_split)
    shared, notes = _count_shared(builder, train_split, val_split), ()
    if shared:
        note = Message(
            '{shared} of {count} validation examples are trained on, as {val_split} and '
            '{train_split} overlap; their accuracy is not that of new images.',
            shared=f'{shared:,}',
            count=f'{len(val):,}',
            val_split=val_split,
            train_split=train_split,
        )
        notes = (note,)
    return Dataset(train, val, tuple(features['label'].names), notes)


def find_prepared(name: str, data_dir: pathlib.Path) -> pathlib.Path | None:
    """Returns the folder with the newest version of a prepared data set, or None.

    A set that comes in several configs need not name its config where one alone is prepared.

    Raises:
      UserError: the name has another form than NAME[/CONFIG][:VERSION], or several configs fit.
    """
    if not re.fullmatch(r'[\w.-]+(/[\w.-]+)?(:[\d.*]+)?', name):
        raise UserError(f'config.data.source: {name!r} is not of the form NAME[/CONFIG][:VERSION].')
    name, _, version = name.partition(':')
    version = version or '*.*.*'
    for pattern in (version, f'*/{version}'):
        found = (data_dir / name).glob(f'{pattern}/dataset_info.json')
        prepared = sorted((path.parent for path in found), key=_version_number)
        configs = sorted({path.parent.name for path in prepared})
        if len(configs) > 1:
            choices = ', '.join(f'tfds:{name}/{config}' for config in configs)
            raise UserError(f'{name} is prepared in several configs; choose from {choices}.')
        if prepared:
            return prepared[-1]
    return None


def _version_number(path: pathlib.Path) -> list[int]:
    return [int(number) for number in re.findall(r'\d+', path.name)]


def _split_name(split: str) -> str:
    return split.partition('[')[0]


def _load_split(builder, split: str, *, num_threads: int | None) -> Split:
    import tensorflow_datasets as tfds  # noqa: PLC0415

    decoders = {'image': tfds.decode.SkipDecoding()}
    try:
        records = builder.as_data_source(split=split, decoders=decoders)
        if not len(records):  # A ValueError where a slice ends before it begins.
            raise ValueError('it has no examples')
    except (ValueError, AssertionError, IndexError) as error:
        why = str(error).splitlines()[-1].removesuffix('.')
        raise UserError(f'the split {split!r} is empty or does not exist ({why}).') from None
    describe = lambda index: f'record {index} of {builder.info.name}:{split}'  # noqa: E731
    lazy = RecordSplit(records, describe, pathlib.Path(builder.data_dir), split)
    shape = builder.info.features['image'].shape
    if None in shape or len(lazy) * np.prod(shape) > _MAX_BYTES_IN_MEMORY:
        return lazy
    return _decode_into_memory(lazy, shape, num_threads)


def _count_shared(builder, train: str, val: str) -> int:
    """Returns how many examples two splits have in common."""
    ranges = []
    for split in (train, val):
        parts = builder.info.splits[split].file_instructions
        ranges.append([(p.filename, p.skip, p.skip + p.take) for p in parts])
    return sum(
        max(0, min(end, other_end) - max(begin, other_begin))
        for file, begin, end in ranges[0]
        for other_file, other_begin, other_end in ranges[1]
        if file == other_file
    )


def _decode_into_memory(
    split: RecordSplit, shape: tuple[int, ...], num_threads: int | None
) -> ArraySplit:
    images_out = np.empty((len(split), *shape), np.uint8)
    labels = np.empty(len(split), np.int32)

    def load(first: int) -> None:
        indices = range(first, min(first + _RECORDS_AT_ONCE, len(split)))
        for index, record in zip(indices, split.records.__getitems__(indices), strict=True):
            labels[index] = record['label']
            try:
                images_out[index] = images.decode(record['image'])[..., : shape[-1]]
            except ValueError as error:
                raise RunError(f'{split.name(index)}: {error}.') from None

    with futures.ThreadPoolExecutor(num_threads or count_cores()) as pool:
        for _ in pool.map(load, range(0, len(split), _RECORDS_AT_ONCE)):  # Raises what they raise.
            pass
    return ArraySplit(images_out, labels)


def prepare_stock(name: str, data_dir: pathlib.Path, manual_dir: pathlib.Path | None) -> None:
    """Downloads and prepares a data set of TFDS's catalogue as array_record.

    Raises:
      UserError: TensorFlow is missing, or TFDS has no such data set.
      RunError: it could not be downloaded or prepared.
    """
    try:
        import tensorflow  # noqa: F401, PLC0415
    except ImportError:
        raise UserError(
            f'preparing {name} needs TensorFlow; run  pip install "flaxcls[prepare]"'
        ) from None
    import tensorflow_datasets as tfds  # noqa: PLC0415

    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format='array_record')
    except tfds.core.DatasetNotFoundError:
        raise UserError(f'TFDS has no data set {name!r}.') from None
    except (ValueError, AssertionError) as error:  # An unknown config or version.
        raise UserError(f'TFDS has no {name!r}: {" ".join(str(error).split())[:300]}') from None
    download = tfds.download.DownloadConfig(manual_dir=manual_dir)
    try:
        builder.download_and_prepare(download_config=download)
    except Exception as error:  # Whatever a builder, a server or a disk comes up with.
        reason = ' '.join(str(error).split())[:500]
        raise RunError(f'{name} could not be prepared: {type(error).__name__}: {reason}') from error
