"""New images, without labels, beside the validation images of a run."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from flaxcls.config.workdir import load_stored_config
from flaxcls.data.datasets import FileSplit, Split
from flaxcls.data.paths import find_files
from flaxcls.data.sources import SOURCES, open_dataset
from flaxcls.data.unreadable import readable_part
from flaxcls.errors import RunError
from flaxcls.evaluation.drift import Drift, Sample, compare, join_statistics, pixel_statistics
from flaxcls.evaluation.runs import EvaluatedRun
from flaxcls.inference.predictions import Predictions, predict_validation
from flaxcls.training.restore import Restored


def open_new_images(
    workdir: str | os.PathLike, source: str, overrides: Mapping[str, Any] | None = None
) -> Split:
    """Returns the images of a source, whose labels have no meaning.

    Args:
      workdir: of the run that is to see them, whose options of config.data apply.
      source: a folder, file or pattern as `find_files` takes it, with or without `folder:` before
        it; or another source as `open_dataset` takes it, of which the validation images are taken.
      overrides: of the run's config.

    Raises:
      UserError: there is nothing to read, or no such source.
      RunError: files cannot be read, and config.data.on_error is stop.
    """
    config = load_stored_config(workdir, overrides)
    data = config.data
    kind, _, rest = source.partition(':')
    is_source = kind in SOURCES and bool(rest) == bool(SOURCES.facts[kind].get('argument'))
    if is_source and kind != 'folder':
        options = {key: data[key] for key in data if key != 'source'}
        options['num_classes'] = config.model.num_classes
        dataset = open_dataset(source, **options)
        for note in dataset.notes:
            print(f'Note: {note}')
        split = dataset.val
    else:
        paths = [found.path for found in find_files([rest if is_source else source])]
        split = FileSplit(paths, np.zeros(len(paths), np.int32))
    if isinstance(split, FileSplit):
        threads = data.num_threads
        split, notes = readable_part(split, 'new', on_error=data.on_error, num_threads=threads)
        for note in notes:
            print(f'Note: {note}')
    return split


def find_drift(run: EvaluatedRun, images: Split) -> Drift:
    """Returns what has changed from the validation images of an evaluated run to others.

    Raises:
      RunError: the network's predictions are not finite.
    """
    setup = run.restored.setup
    dataset = setup.dataset.replace(val=_Unlabelled(images))
    new = run.restored._replace(setup=setup._replace(dataset=dataset))
    pairs = (run.restored, run.predictions), (new, predict_validation(new))
    before, now = (_sample(*pair, run.temperature) for pair in pairs)
    return compare(before, now, run.predictions.class_names)


class _Unlabelled:
    """A split whose labels are all 0, since those of another source can be no class here."""

    def __init__(self, split: Split):
        self._split = split

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> tuple[np.ndarray | bytes, int]:
        return self._split[index][0], 0

    def name(self, index: int) -> str:
        return self._split.name(index)


def _sample(run: Restored, predictions: Predictions, temperature: float) -> Sample:
    if not np.isfinite(predictions.logits).all():
        raise RunError(
            "the network's predictions are not finite, so that no drift of them can be found; its "
            f'training has failed by step {run.step}: try another --checkpoint.'
        )
    batches = run.setup.make_eval_batches()()
    parts = (pixel_statistics(batch['image'][batch['mask']]) for batch in batches)
    return Sample(join_statistics(parts), predictions.probabilities(temperature))
