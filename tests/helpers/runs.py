"""Finished runs that are made once, for all tests and all processes of pytest-xdist."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import filelock
from ml_collections import ConfigDict

import flaxcls
from flaxcls.training.checkpoints import fingerprint


class FinishedRun(NamedTuple):
    """A run that others look at too: who would write into its workdir takes a copy."""

    config: ConfigDict
    workdir: pathlib.Path
    sha256: str  # Of the state that training returned.
    history: list[dict[str, Any]]  # As training returned it.


def common_folder(tmp_path_factory) -> pathlib.Path:
    """Returns a folder that is the same in all processes of these tests."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if 'PYTEST_XDIST_WORKER' in os.environ else folder


def train_once(folder: pathlib.Path, name: str, options: Mapping[str, Any]) -> FinishedRun:
    """Returns the run of that name in the folder, which whoever comes first has trained."""
    config, workdir = flaxcls.load_config(None, options), folder / name
    outcome = folder / f'{name}.json'
    with filelock.FileLock(folder / f'{name}.lock'):
        if not outcome.exists():
            state, history = flaxcls.train_and_evaluate(config, workdir)
            outcome.write_text(json.dumps([fingerprint(state), history]))
    return FinishedRun(config, workdir, *json.loads(outcome.read_text()))


def list_files(folder: pathlib.Path) -> dict[str, tuple[int, int]]:
    """Returns {path: (size, time of its last change)} of all files in a folder."""
    found = {str(path): path.stat() for path in folder.rglob('*') if path.is_file()}
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}
