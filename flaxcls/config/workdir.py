"""The files of a workdir: their names, and those that say what its run is."""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from flaxcls.config.config_dict import from_json, set_option, stored_extensions
from flaxcls.config.extensions import load_extensions_of_run
from flaxcls.errors import UserError

# What a workdir holds; docs/ and the messages of lower packages spell some of these names out.
CONFIG_FILE = 'config.json'
CLASSES_FILE = 'class_names.json'
METRICS_FILE = 'metrics.jsonl'
RECORD_FILE = 'record.json'
DATA_FILE = 'images.json.gz'
CHECKPOINTS_FOLDER = 'checkpoints'
DAMAGED_FOLDER = 'damaged_checkpoints'
IMPORT_FILE = 'imported.json'
PREDICTIONS_FILE = 'predictions.npz'
CALIBRATION_FILE = 'calibration.json'
REPORT_FILE = 'report.html'


def load_stored_config(
    workdir: str | os.PathLike, overrides: Mapping[str, Any] | None = None
) -> ConfigDict:
    """Returns the resolved config of a run, with overrides.

    Raises:
      UserError: no run has been started in `workdir`, or an override does not fit.
    """
    path = pathlib.Path(workdir).expanduser() / CONFIG_FILE
    if not path.is_file():
        raise UserError(
            f'there is no run in {str(workdir)!r} (no {CONFIG_FILE}); name the workdir of one, or '
            'start one with  flaxcls train --config=NAME'
        )
    text = path.read_text(encoding='utf-8')
    load_extensions_of_run(stored_extensions(text), path.parent)
    config = from_json(text)
    if 'extensions' in (overrides or {}):
        raise UserError(
            f'config.extensions is {config.extensions!r} in {str(workdir)!r}, whose run keeps its '
            'own; leave it out.'
        )
    for key, value in (overrides or {}).items():
        set_option(config, key, value)
    return config


def require_different(workdirs: Sequence[str]) -> None:
    """Raises UserError if one run is given twice, which is nothing to compare."""
    seen = {}
    for workdir in workdirs:
        if (real := os.path.realpath(workdir)) in seen:
            raise UserError(
                f'--workdir={workdir} and --workdir={seen[real]} are one run; give different ones.'
            )
        seen[real] = workdir


def load_class_names(workdir: str | os.PathLike) -> list[str] | None:
    """Returns the names of a run's classes in the order of the logits; None: imported, untold.

    Raises:
      UserError: the file that lists them is missing or damaged.
    """
    path = pathlib.Path(workdir).expanduser() / CLASSES_FILE
    classes = load_stored_config(workdir).model.num_classes
    try:
        names = json.loads(path.read_text(encoding='utf-8'))
        if names is None or (isinstance(names, list) and len(names) == classes):
            return names
    except (FileNotFoundError, ValueError):
        pass
    raise UserError(
        f'{str(path)!r} is missing or damaged, and should list {classes} names; train in a new '
        'workdir.'
    )


def require_stored_classes(
    workdir: str | os.PathLike, class_names: Sequence[str], source: str
) -> None:
    """Raises UserError unless the classes are, in their order, those the run began with.

    Imported weights come without the names of their classes: any are taken, with a note.

    Args:
      workdir: path of the directory that the run was trained in.
      class_names: in the order of the labels.
      source: of the data, for messages.
    """
    names = load_class_names(workdir)
    if names is None:
        print(
            f'Note: the weights in {str(workdir)!r} come without names of classes; those of '
            f'{source} are taken, in their order.'
        )
    elif names != list(class_names):
        raise UserError(
            f'the classes of {source} are not those that the run in {str(workdir)!r} began with, '
            f'which {CLASSES_FILE} lists; give it the same ones.'
        )
